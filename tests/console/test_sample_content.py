"""A sample in one paragraph."""

from __future__ import annotations

import pytest

from core.runs.events import SampleEvent
from mamba_tui.wording import sample_content


@pytest.mark.parametrize(
    ("prompt", "text", "shown"),
    [
        ("Mr. Darcy ", "a repible", "Mr. Darcy a repible"),
        ("Mr. Dar", "cy said", "Mr. Darcy said"),
        ("Mr.  Darcy\n", "\nsaid", "Mr. Darcy said"),
        ("", " said ", "said"),
        ("Mr. ", "Mr. Darcy", "Mr. Darcy"),
    ],
)
def test_prompt_and_text_are_joined_before_they_are_folded(prompt, text, shown):
    content = sample_content(SampleEvent(step=1, prompt=prompt, text=text), lines=False)
    assert content.plain == shown
