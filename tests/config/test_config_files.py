"""Configuration files: every layout, every way to break one, and writing without loss."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from core.config.changes import replace
from core.config.files import (
    apply_settings,
    load_file,
    parse_value,
    preset,
    preset_about,
    preset_names,
    save_file,
)
from core.config.schema import build, flat
from core.config.setting import ConfigError
from core.errors import UserError

# What the original program writes on its first start (facts of its format, values of its defaults).
SEED = {
    "configuration_version": 1,
    "config": {
        "batch_size": 64,
        "block_size": 128,
        "max_iters": 100000,
        "eval_interval": 200,
        "learning_rate": 3e-4,
        "eval_iters": 50,
        "n_embd": [256, 256, 192, 128, 128, 192, 256, 256],
        "n_head": 8,
        "n_layer": 8,
        "dropout": 0.1,
        "attention_type": ["mamba", "standard", "standard", "mamba"] + ["standard"] * 4,
    },
    "device": "cpu",
    "compile": False,
    "dataset_dir": "dataset",
}


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return path


def test_the_seeds_file_is_read_unchanged_and_is_the_seed_preset(tmp_path):
    config = load_file(write(tmp_path / "current_configuration.json", json.dumps(SEED, indent=4)))
    assert config.model == preset("original").model
    # The preset also says what the file has no key for.
    said = replace(config, schedule="cosine", decay_small_matrices=True)
    assert said.training == preset("original").training
    assert (config.hardware.device, config.data.dataset_dir) == ("cpu", "dataset")


@pytest.mark.parametrize("suffix", [".json", ".toml"])
@pytest.mark.parametrize("name", preset_names())
@pytest.mark.parametrize("cuda", [False, True])
def test_presets_survive_a_round_trip(tmp_path, name, suffix, cuda):
    config = preset(name, cuda=cuda)
    path = tmp_path / f"a{suffix}"
    save_file(config, path)
    assert load_file(path) == config
    assert preset_about(name)


def test_a_saved_json_has_the_seeds_layout(tmp_path):
    path = tmp_path / "a.json"
    save_file(build({}), path)
    data = json.loads(path.read_text())
    assert set(data) == set(SEED)
    assert set(SEED["config"]) <= set(data["config"])


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.json", '{\n  "config": {\n    "n_embd": [1,\n}', "line 4"),
        ("a.json", "[1, 2]", "list"),
        ("a.json", "", "line 1"),
        ("a.toml", "n_embd = [1,\nn_head = 3", "line 2"),
        ("a.json", '{"configuration_version": 2, "config": {}}', "configuration_version is 2"),
        ("a.json", '{"config": 3}', "config is 3"),
        ("a.json", '{"config": {"batchsize": 3}}', '"batch_size"'),
        ("a.json", '{"config": {"device": "cpu"}, "device": "mps"}', "device"),
        ("a.toml", "[model]\nlearning_rate = 1.0", "[training]"),
        ("a.toml", "[training]\nlearning_rate = 'fast'", 'learning_rate is "fast"'),
        ("a.toml", "n_embd = 0", "n_embd is 0"),
        ("a.yaml", "n_embd: 0", ".json or .toml"),
    ],
)
def test_a_broken_file_is_one_clear_error(tmp_path, name, text, words):
    path = write(tmp_path / name, text)
    with pytest.raises(UserError) as caught:
        load_file(path)
    assert str(path) in str(caught.value)
    assert words in str(caught.value)


def test_files_that_are_no_text_or_not_there(tmp_path):
    (tmp_path / "a.json").write_bytes(b"\xff\xfe\x00")
    for path in (tmp_path / "a.json", tmp_path / "none.toml", tmp_path / "folder.json"):
        if path.name == "folder.json":
            path.mkdir()
        with pytest.raises(UserError, match=path.name):
            load_file(path)


def test_a_failed_save_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.json"
    save_file(build({}), path)
    before = path.read_bytes()
    blocker = tmp_path / "file"
    blocker.write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        save_file(build({}), blocker / "b.json")
    with pytest.raises(UserError):
        save_file(build({}), tmp_path / "a.yaml")
    assert path.read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.json", "file"]


def test_set_takes_values_as_people_type_them():
    config = apply_settings(
        preset(),
        ["n_embd=[64,48,64]", "attention_type=[mamba, standard, mamba2]", "tokenizer=char",
         "dropout=0.1", "training.batch_size=4", "compile=true", "dataset_dir=/a b/c=d"],
    )  # fmt: skip
    assert config.model.n_embd == (64, 48, 64)
    assert config.model.attention_type == ("mamba", "standard", "mamba2")
    assert (config.data.tokenizer, config.model.dropout, config.training.batch_size) == ("char", 0.1, 4)
    assert config.data.dataset_dir == "/a b/c=d"
    with pytest.raises(UserError, match="key=value"):
        apply_settings(config, ["dropout"])
    with pytest.raises(ConfigError, match='"dropout"'):
        apply_settings(config, ["dropuot=0.1"])


def test_the_earlier_name_of_a_preset_still_works():
    assert preset("seed") == preset("original")
    assert "seed" not in preset_names()


def test_an_unknown_preset_names_the_known_ones():
    with pytest.raises(UserError, match="shakespeare-char"):
        preset("bok")


@given(st.text(max_size=20))
def test_any_typed_value_is_a_value(text):
    assert parse_value(text) is not None


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(text=st.text(max_size=60), suffix=st.sampled_from([".json", ".toml"]))
def test_any_text_as_a_file_is_a_configuration_or_a_user_error(tmp_path, text, suffix):
    path = tmp_path / f"fuzz{suffix}"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    try:
        config = load_file(path)
    except UserError as error:
        message = str(error)
    else:
        message = f"{path}" if build(flat(config)) == config else ""
    assert str(path) in message


@pytest.mark.parametrize("key", ["max_iters", "vocab_size", "cooldown_iters", "sample_interval", "threads"])
@pytest.mark.parametrize("ending", ["json", "toml"])
def test_zero_that_means_auto_is_written_as_auto_and_both_are_read(key, ending, tmp_path):
    path = tmp_path / f"c.{ending}"
    save_file(build({key: 0}), path)
    assert '"auto"' in next(line for line in path.read_text().splitlines() if f"{key}" in line)
    assert flat(load_file(path))[key] == flat(build({key: "auto"}))[key] == 0
    save_file(build({"patience": 0}), path)
    assert "auto" not in next(line for line in path.read_text().splitlines() if "patience" in line)


def test_a_word_other_than_auto_is_refused_and_auto_is_among_what_is_accepted():
    with pytest.raises(ConfigError, match='max_iters is "many"; accepted: "auto" or a whole number'):
        build({"max_iters": "many"})
    with pytest.raises(ConfigError):
        build({"patience": "auto"})
