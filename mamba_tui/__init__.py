"""The terminal: command line and Textual console. Never imports torch."""

from mamba_tui.own_core import use_own_core

use_own_core()
