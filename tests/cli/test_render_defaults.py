"""The default checkpoint and presets: which checkpoint a render without one uses, and what a preset changes."""

from pathlib import Path

import pytest
from running import Civman

from civman.demo.server import CivitaiServer

pytest.importorskip("torch", reason="needs the packages for rendering")


@pytest.fixture
def stocked(online: CivitaiServer, civman: Civman) -> None:
    assert civman("download", "91001", "civitai:91003", "--quiet").code == 0


def plan(civman: Civman, *words: object) -> dict:
    run = civman("render", *words, "--dry-run", "--device", "cpu", "--json")
    assert run.code == 0, run.out
    return run.json["plan"][0]


@pytest.mark.usefixtures("stocked")
def test_the_only_checkpoint_is_used_and_named(civman: Civman, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a cat\na dog\n")

    run = civman("render", "tiny", "--dry-run", "--device", "cpu")  # a part of the checkpoint's name is a prompt
    listed = civman("render", "--prompts", tmp_path / "prompts.txt", "--dry-run", "--device", "cpu", "--json")

    assert (run.code, "tiny" in run.out) == (0, True)
    assert "91001@191010 (Tiny Shapes v1.0), the only checkpoint in the library" in run.err
    assert [each["recipe"]["prompt"] for each in listed.json["plan"]] == ["a cat", "a dog"]
    for named in ("91001", "@191010", "tinyShapes_v10.safetensors", "TINYSHAPES_V10", "Tiny Shapes"):
        refused = civman("render", named)
        assert (refused.code, "a prompt is missing" in refused.err) == (2, True)
        assert f"civman render {named} " in refused.err


def test_without_any_checkpoint_the_next_step_is_named_and_nothing_is_created(civman: Civman, root: Path) -> None:
    run = civman("render", "a harbour at dawn")

    assert run.code == 2
    assert "[no-checkpoint]" in run.err
    assert "civman search --type Checkpoint" in run.err
    assert not (root / "library.db").exists()


@pytest.mark.usefixtures("stocked")
def test_of_several_checkpoints_the_settings_choose(civman: Civman) -> None:
    assert civman("download", "51207", "--quiet").code == 0
    refused = civman("render", "a harbour", "--dry-run", "--device", "cpu")

    assert refused.code == 2
    assert "civman config render.checkpoint 51207@" in refused.err

    assert civman("config", "render.checkpoint", "@191010").code == 0
    chosen = civman("render", "a harbour", "--dry-run", "--device", "cpu")
    assert "(Tiny Shapes v1.0), the default checkpoint in " in chosen.err
    assert "harbourLight" in civman("render", "51207", "a harbour", "--dry-run", "--device", "cpu").err  # it is damaged


@pytest.mark.usefixtures("stocked")
def test_a_presets_values_are_in_plan_and_recipe_and_typed_options_override_them(civman: Civman) -> None:
    for key, *values in (
        ("steps", "7"), ("size", "64x128"), ("cfg", "4.5"), ("lora", "91003:0.5"), ("pad-prompts", "true"),
        ("checkpoint", "91001"), ("count", "2"),
    ):  # fmt: skip
        assert civman("config", f"render.presets.tall.{key}", *values).code == 0

    made = plan(civman, "a circle", "--preset", "tall", "--steps", "9")

    recipe = made["recipe"]
    assert (recipe["steps"], recipe["width"], recipe["height"], recipe["guidance_scale"]) == (9, 64, 128, 4.5)
    assert (recipe["count"], recipe["loras"][0]["scale"]) == (2, 0.5)
    assert made["preset"]["name"] == "tall"
    assert made["preset"]["values"]["steps"] == 7
    said = civman("render", "a circle", "--preset", "tall", "--steps", "9", "--dry-run", "--device", "cpu").err
    assert "size 64x128" in said
    assert "steps 7" not in said


def test_an_unknown_preset_and_an_unknown_option_are_refused(civman: Civman, tmp_path: Path) -> None:
    assert civman("config", "render.presets.tall.steps", "7").code == 0

    near = civman("render", "a circle", "--preset", "tal")
    assert (near.code, "did you mean `tall`?" in near.err) == (2, True)
    assert "did you mean `steps`?" in civman("config", "render.presets.tall.stepps", "7").err
    assert civman("config", "render.presets.tall.steps", "many").code == 2
    (tmp_path / "config" / "config.toml").write_text("[render.presets.tall]\nstepps = 7\n")
    wrong = civman("render", "a circle", "--preset", "tall")
    assert (wrong.code, "did you mean `steps`?" in wrong.err) == (2, True)


def test_a_project_overrides_the_users_settings_and_comments_stay(
    civman: Civman, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "civman.toml").write_text("# ours\n[[models]]\nref = '@1'\n")
    assert civman("config", "render.checkpoint", "@2").code == 0
    assert civman("config", "render.checkpoint", "@3", "--project").code == 0

    shown = civman("config", "--json").json["config"]["settings"]["render.checkpoint"]
    assert shown == {"value": "@3", "source": str(tmp_path / "civman.toml")}
    assert (tmp_path / "civman.toml").read_text().startswith("# ours\n")

    assert civman("config", "--unset", "render.checkpoint", "--project").code == 0
    assert civman("config", "render.checkpoint", "--quiet").out == "@2\n"


@pytest.mark.parametrize(
    ("key", "value"),
    [("offline", "maybe"), ("civitai_url", "http://example.org"), ("nothing", "1"), ("render.checkpoint", " ")],
)
def test_a_setting_that_cannot_be_is_refused_and_the_file_stays(
    civman: Civman, tmp_path: Path, key: str, value: str
) -> None:
    assert civman("config", "offline", "true").code == 0
    before = (tmp_path / "config" / "config.toml").read_text()

    run = civman("config", key, value)

    assert (run.code, "Hint:" in run.err) == (2, True)
    assert (tmp_path / "config" / "config.toml").read_text() == before
