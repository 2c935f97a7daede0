"""The config of a run: a file, overrides on top, and one line for each mistake."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from data_shards.errors import UserError
from encoder.model import EncoderSettings
from launch.config import EncoderSection, RunConfig, load_config, to_toml

# All but the one that configures an import.
CONFIGS = sorted(
    path for path in (Path(__file__).parents[2] / "configs").glob("*.toml") if path.name != "import.toml"
)


@pytest.fixture
def toml(tmp_path: Path) -> Path:
    path = tmp_path / "run.toml"
    path.write_text('[run]\nseed = 4\n[batch]\nbatch_size = 32\n[encoder]\nquery_prompt = "query: "\n')
    return path


def refuse(toml: str | None, overrides: list[str], message: str, tmp_path: Path) -> None:
    """Expect one line that says so."""
    path = tmp_path / "run.toml" if toml is not None else None
    if path is not None:
        path.write_text(toml or "")
    with pytest.raises(UserError, match=message) as caught:
        load_config(path, overrides)
    assert "\n" not in str(caught.value)
    assert "│" not in str(caught.value)


def test_without_a_file_everything_is_as_the_rooms_have_it() -> None:
    assert load_config(None) == RunConfig()


def test_the_file_takes_the_place_of_defaults_and_overrides_that_of_the_file(toml: Path) -> None:
    config = load_config(toml, ["--run.seed=6", "--engine.kind=zero2"])
    assert (config.run.seed, config.batch.batch_size, config.engine.kind) == (6, 32, "zero2")
    assert config.encoder.query_prompt == "query: "
    assert config.train == RunConfig().train


@pytest.mark.parametrize(
    ("override", "wanted"),
    [
        ("--batch.batch_size=64", {"batch": {"batch_size": 64}}),
        ("--batch.batch-size=64", {"batch": {"batch_size": 64}}),
        ("--train.gradient_cache=off", {"train": {"gradient_cache": "off"}}),
        ("--optimizer.learning_rate=5e-5", {"optimizer": {"learning_rate": 5e-5}}),
        ("--encoder.query_prompt=", {"encoder": {"query_prompt": ""}}),
        ("--encoder.query_prompt=a = b --c.d=e", {"encoder": {"query_prompt": "a = b --c.d=e"}}),
        ("--encoder.max_tokens=64", {"encoder": {"max_tokens": 64}}),
        ("--data.pairs=/data/some-where/with_both", {"data": {"pairs": ("/data/some-where/with_both",)}}),
        ("--data.pairs=a, b", {"data": {"pairs": ("a", "b")}}),
        ('--data.pairs=["a, b"]', {"data": {"pairs": ("a, b",)}}),
    ],
)
def test_overrides_by_hand(override: str, wanted: dict[str, dict[str, object]]) -> None:
    sections = {
        section: dataclasses.replace(getattr(RunConfig(), section), **fields) for section, fields in wanted.items()
    }
    assert load_config(None, [override]) == dataclasses.replace(RunConfig(), **sections)  # type: ignore[arg-type]


def test_the_last_of_two_overrides_counts() -> None:
    assert load_config(None, ["--run.seed=1", "--run.seed=2"]).run.seed == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[batch]\nbatch_sise = 4", r"there is no key batch\.batch_sise; did you mean batch\.batch_size\?$"),
        ("[bach]\nbatch_size = 4", r"there is no key bach\.batch_size; did you mean batch\.batch_size\?$"),
        ("[optimizer]\ntemperature = 1", r"no key optimizer\.temperature; did you mean loss\.temperature\?$"),
        ("[zz]\nqq = 1", r"there is no key zz\.qq; sections are run, data, order, cache, encoder, "),
        ("seed = 4", r"seed stands outside of a \[section\]; did you mean run\.seed or mining\.seed\?$"),
        ("[run\nseed = 4", r" is not valid TOML: .*line 1"),
    ],
)
def test_a_mistake_in_the_file_names_file_and_remedy(tmp_path: Path, text: str, message: str) -> None:
    refuse(text, [], rf"^config .*run\.toml.*{message}", tmp_path)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("--batch.batch_sise=4", r"^argument: there is no key batch\.batch_sise; did you mean batch\.batch_size\?$"),
        ("--batch.batch-sise=4", r"did you mean batch\.batch_size\?$"),
        ("--seed=4", r"^argument: there is no key seed; did you mean run\.seed or mining\.seed\?$"),
        ("run.seed=4", r"^cannot read 'run\.seed=4'; overrides have the form --section\.field=value$"),
        ("--run.seed", r"^cannot read '--run\.seed'; overrides have the form --section\.field=value$"),
    ],
)
def test_a_mistake_on_the_command_line_says_what_to_change(tmp_path: Path, override: str, message: str) -> None:
    refuse(None, [override], message, tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[run]\nseed = 4.5", r"--run\.seed: .*'4\.5'"),
        ("[run]\nseed = true", r"--run\.seed: .*'True'"),
        ("[run]\nseed = [1]", r"--run\.seed: .*'\[1\]'"),
        ("[run.seed]\na = 1", r"--run\.seed: "),
        (
            '[engine]\nkind = "zero9"',
            r"'zero9' for .*--engine\.kind.* one of \('ddp', 'fsdp2', 'zero1', 'zero2', 'zero3'\)",
        ),
        (
            "[train]\ngradient_cache = 3",
            r"'3' for .*gradient-cache.* one of \('auto', 'on', 'off'\)",
        ),
        (
            "[engine]\noffload = true",
            r"engine\.offload is DeepSpeed's, engine\.kind is ddp; set kind to zero2 or zero3$",
        ),
        (
            '[engine]\nkind = "zero3"\ncompile = true',
            r"engine\.compile does not go with zero3; set kind to ddp or fsdp2",
        ),
        (
            "[batch]\nbatch_size = 6\naccumulation = 4",
            r"batch_size 6 does not divide into batch\.accumulation = 4 parts$",
        ),
        ("[train]\nactivations_gib = -1", r"train\.activations_gib must be 0 or more, came -1\.0$"),
        ("[optimizer]\nbeta2 = 1.0", r"optimizer\.beta2 must be at least 0 and below 1, came 1\.0$"),
        ("[loss]\ntemperature = 0", r"loss\.temperature must be positive, came 0\.0$"),
        ("[batch]\nbatch_size = 0", r"batch\.batch_size must be at least 1, came 0$"),
        ("[refresh]\nevery_steps = 3", r"first_step is 0, which turns mining off; set first_step$"),
        ("[run]\nranks = 0", r"run\.ranks must be at least 1, came 0$"),
        ("[workers]\ncount = 0", r"workers\.count and workers\.threads must be at least 1$"),
        ("[train]\nepochs = 0", r"train\.epochs must be positive, or train\.steps at least 1$"),
        ("[train]\nkeep_checkpoints = 0", r"checkpoint_every_steps and keep_checkpoints must be at least 1$"),
        ("[engine]\ntimeout_s = 0", r"engine\.timeout_s must be at least 1, came 0$"),
        ('[index]\nfactory = "IDMap2,Flat"', r"leave IDMap out$"),
    ],
)
def test_a_value_that_does_not_fit_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    refuse(text, [], message, tmp_path)


def test_a_config_that_is_not_there_or_is_a_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no\.toml does not exist; configs/ holds commented examples"):
        load_config(tmp_path / "no.toml")
    with pytest.raises(UserError, match=r"is a folder; give the TOML file, such as .*config\.toml"):
        load_config(tmp_path)
    (tmp_path / "latin.toml").write_bytes(b'[run]\nout = "\xff"')
    with pytest.raises(UserError, match=r"latin\.toml is not valid TOML"):
        load_config(tmp_path / "latin.toml")


def test_what_the_encoder_section_leaves_out_stays_as_the_model_has_it() -> None:
    base = EncoderSettings(pooling="cls", max_tokens=99, query_prompt="query: ", passage_prompt="passage: ")
    assert EncoderSection(model="some/model").settings(base) == base
    changed = EncoderSection(query_prompt="", max_tokens=12).settings(base)
    assert changed == dataclasses.replace(base, query_prompt="", max_tokens=12)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_config_in_the_repository_loads(path: Path) -> None:
    assert load_config(path) != RunConfig()


def test_there_are_configs() -> None:
    assert {"quickstart.toml", "tldr.toml"} <= {path.name for path in CONFIGS}


def test_a_written_config_names_every_field_that_has_a_value(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text(to_toml(RunConfig()))
    text = path.read_text()
    for section, fields in dataclasses.asdict(RunConfig()).items():
        assert f"[{section}]" in text
        for name, value in fields.items():
            assert (f"\n{name} = " in text) or value is None
