"""Every ref that a command prints is accepted by every command that takes a ref."""

import ast
import inspect
import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from running import Civman
from typer.models import OptionInfo

import civman as civman_package
from civman.cli import completion
from civman.cli.command_table import commands
from civman.demo.demo_catalog import DemoFile, DemoVersion, utc
from civman.demo.demo_weights import sd1_checkpoint, sd1_lora
from civman.demo.preview_pictures import png
from civman.demo.server import CivitaiServer

HARBOUR, INK, SHAPES, STRIPES = 51207, 139562, 91001, 91003
PRUNED, FULL = "51207@114620+98103", "51207@114620+98102"
PRINTED = re.compile(r"(?<![\w/:@=-])(?:[0-9]*@[0-9]+(?:\+[0-9]+)?|civitai:[0-9]+|sha256:[0-9a-f]{10,64})(?![\w…])")
REFUSALS = ("ambiguous-ref", "invalid-ref", "not-found", "no-such-file", "other-model")


@pytest.fixture
def stocked(online: CivitaiServer, civman: Civman, tmp_path: Path) -> CivitaiServer:
    """Two precisions of one version, two versions of one model, replaced bytes, files that CivitAI does not know."""
    for ref, *options in (
        (f"civitai:{HARBOUR}",), (f"civitai:{HARBOUR}", "-f", "98102"), ("@160211",), ("@151090",), ("@191010",),
        ("@191030",), ("@139562",), ("@191050",),
    ):  # fmt: skip
        assert civman("download", ref, *options).code == 0, ref
    online.catalogue.replace_bytes(159030, sd1_lora("other bytes", tags={"x": 1}))
    assert civman("update", "--yes").code == 0
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "own lora.safetensors").write_bytes(sd1_lora("mine", tags={"own": 2}))
    (folder / "own.safetensors").write_bytes(sd1_checkpoint("own"))
    assert civman("import", folder).code == 0
    assert civman("edit", "own lora", "--alias", "brush").code == 0
    ink = online.catalogue.model(INK)
    assert ink is not None
    newer = DemoVersion(
        170001, "v2.0", files=(DemoFile(670001, "ink.safetensors", ink.versions[0].files[0].content),),
        base_model="SD 1.5", images=(), published_at=utc("2026-05-01"), description="",
    )  # fmt: skip
    online.catalogue.publish(INK, newer, as_default=False)
    return online


def in_json(value: Any, key: str) -> Iterator[str]:
    """All texts, and all lists of texts, under `key`."""
    if isinstance(value, dict):
        for name, item in value.items():
            if name == key:
                yield from [item] if isinstance(item, str) else item
            else:
                yield from in_json(item, key)
    elif isinstance(value, list):
        for item in value:
            yield from in_json(item, key)


def printed(civman: Civman, *argv: object) -> set[str]:
    """The refs that a command prints: for people, with --quiet and with --json."""
    run, quiet, as_json = civman(*argv), civman(*argv, "--quiet"), civman(*argv, "--json")
    refs = set(PRINTED.findall(run.out + run.err)) - {str(word) for word in argv}  # what was typed comes back in errors
    refs |= {line for line in quiet.out.splitlines() if PRINTED.fullmatch(line)}
    found = json.loads(as_json.out)
    return refs | set(in_json(found, "ref")) | set(in_json(found, "candidates"))


COMMANDS = (
    ("show", "{}"), ("download", "{}", "--allow-pickle"), ("download", "{}", "--dry-run"), ("inspect", "{}"),
    ("check", "{}"), ("check", "@191010", "--lora", "{}"), ("check", "@191010", "--embedding", "{}"),
    ("check", "@191010", "--vae", "{}"), ("download", "@191030", "--for", "{}", "--dry-run"),
    ("search", "--fits", "{}", "--limit", "1"), ("verify", "{}"), ("edit", "{}", "--note", "seen"),
    ("remove", "{}", "--dry-run"), ("outdated", "{}"), ("list", "--fits", "{}"), ("renders", "--with", "{}"),
    ("render", "{}", "a fox", "--dry-run"), ("render", "@191010", "a fox", "--lora", "{}", "--dry-run"),
    ("export", "{bundle}", "{}", "--force"), ("link", "{view}", "{}", "--layout", "comfyui", "--dry-run"),
    ("render", "@191010", "a fox", "--embedding", "{}", "--dry-run"),
    ("render", "@191010", "a fox", "--hypernetwork", "{}", "--dry-run"),
    ("render", "@191010", "a fox", "--vae", "{}", "--dry-run"), ("add", "{}"), ("drop", "{}"),
    ("render", "@191010", "a fox", "--upscale", "{}", "--dry-run"),
    ("render", "@191010", "a fox", "--init", "picture.png", "--tiled-upscale", "{}", "--dry-run"),
    ("render", "@191010", "a fox", "--control", "picture.png:{}", "--dry-run"),
    ("render", "@191010", "a fox", "--reference", "picture.png:{}", "--dry-run"),
    ("render", "@191010", "a fox", "--hires", "2", "--hires-lora", "{}", "--dry-run"),
    ("render", "@191010", "a fox", "--hires", "2", "--hires-checkpoint", "{}", "--dry-run"),
    ("render", "@191010", "a fox", "--refiner", "{}", "--refiner-at", "0.8", "--dry-run"),
    ("render", "@191010", "a fox", "--init", "picture.png", "--init-upscale", "{}", "--dry-run"),
    ("render", "@191010", "a fox", "--init", "picture.png", "--ultimate-upscale", "{}", "--dry-run"),
    ("check", "@191010", "--control", "{}"), ("check", "@191010", "--reference", "{}"),
    ("upscale", "picture.png", "--model", "{}", "--dry-run"), ("update", "{}", "--yes"),
    ("remove", "{}", "--yes"), ("restore", "{}"),
)  # fmt: skip


def taking_refs() -> set[tuple[str, str]]:
    """Every argument and option of the command line that takes a ref: the command and the option, "" for arguments."""
    found = set()
    for _, each in commands():
        for parameter in inspect.signature(each.run).parameters.values():
            (given,) = getattr(parameter.annotation, "__metadata__", (None,))
            # in `Annotated`, typer takes the first name of an option for its default value
            names = [getattr(given, "default", None), *(getattr(given, "param_decls", None) or ())]
            names = [name for name in names if isinstance(name, str) and name.startswith("--")]
            is_option = isinstance(given, OptionInfo)
            if getattr(given, "autocompletion", None) is completion.refs or "REF" in str(getattr(given, "metavar", "")):
                name = (names or [f"--{parameter.name.strip('_').replace('_', '-')}"])[0] if is_option else ""
                found.add((each.name, name))
    return found


def test_the_test_of_printed_refs_covers_every_place_for_a_ref() -> None:
    tried = set()
    for name, *words in COMMANDS:
        place = next(number for number, word in enumerate(words) if word.endswith("{}"))
        before = words[place - 1] if place else ""
        tried.add((name, before if before.startswith("--") else ""))

    resolved_by_one_rule_in_an_object_store = {("push", ""), ("pull", "")}
    behind_a_role = {("render", "--part")}  # ROLE=REF, resolved like the ref of --vae
    assert taking_refs() - tried - behind_a_role == resolved_by_one_rule_in_an_object_store


@pytest.mark.long
def test_every_printed_ref_is_accepted_by_every_command(
    stocked: CivitaiServer, civman: Civman, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "picture.png").write_bytes(png(1, 64, 64))
    sources: tuple[tuple[object, ...], ...] = (
        ("list",), ("show", "@114620"), ("show", "@191030"),
        ("show", "brush"), ("outdated",), ("show", INK), ("render", INK, "a fox"), ("inspect", INK),
        ("inspect", STRIPES), ("remove", "tiny-stripes"), ("inspect", PRUNED), ("check", PRUNED),
        ("download", HARBOUR, "--dry-run"), ("download", f"civitai:{HARBOUR}", "-f", "model"),
        ("edit", HARBOUR, "--alias", "x"), ("inspect", f"civitai:{INK}"), ("show", f"{SHAPES}@114620"),
    )  # fmt: skip
    refs = {ref for source in sources for ref in printed(civman, *source)}
    assert {PRUNED, FULL, "139562@160211", "139562@151090", "brush"} <= refs
    assert any(ref.startswith("sha256:") for ref in refs)
    stored = {ref for ref in refs if civman("edit", ref, "--note", "seen").code == 0}
    bundle, view = tmp_path / "b.civman", tmp_path / "view"
    refused = []
    for ref in sorted(refs):
        is_added = False
        for command in COMMANDS:
            argv = [word.format(ref, bundle=bundle, view=view) for word in command]
            run = civman(*argv, "--json")
            if command[0] == "drop" and not is_added:
                continue  # the ref was understood, but its file cannot be had: early access, for example
            is_added = command[0] == "add" and run.code == 0
            code = json.loads(run.out).get("error", {}).get("code", "")
            needs_file = command[0] not in ("show", "download", "inspect", "add", "drop", "check")
            if code in REFUSALS and not (needs_file and ref not in stored and code == "not-found"):
                refused.append((" ".join(argv), code, json.loads(run.out)["error"]["message"]))
    assert not refused, "\n".join(map(str, refused))


def test_every_ref_of_a_search_is_accepted(online: CivitaiServer, civman: Civman) -> None:
    refs = printed(civman, "search", "--nsfw", "--archived")

    assert {PRUNED, "139562@160211"} <= refs
    assert any(ref.endswith("@139700") for ref in refs)
    assert not any(ref.isdecimal() for ref in civman("search", "--quiet").out.split())
    for ref in refs:
        for command in ("show", "inspect", "download"):
            run = civman(command, ref, *(["--dry-run"] if command == "download" else []), "--json")
            assert json.loads(run.out).get("error", {}).get("code") not in REFUSALS, (command, ref)


def test_two_precisions_of_one_version_are_told_apart_by_what_list_prints(
    online: CivitaiServer, civman: Civman
) -> None:
    assert civman("download", HARBOUR).code == 0
    assert civman("download", HARBOUR, "-f", "98102").code == 0

    listed = {asset["file_id"]: asset["ref"] for asset in civman("list", "--json").json["list"]["assets"]}
    assert listed == {98103: PRUNED, 98102: FULL}
    assert {PRUNED, FULL} <= set(civman("list").out.split())
    for number, ref in listed.items():
        assert civman("inspect", ref, "--json").json["inspect"]["asset"]["file_id"] == number
        assert json.loads(civman("check", ref, "--json").out).get("error", {}).get("code") not in REFUSALS
        # these files have the right names and widths that no encoder has: found, and refused for that
        assert civman("render", ref, "a fox", "--dry-run", "--json").json["error"]["code"] == "mismatched-parts"
        (edited,) = civman("edit", ref, "--note", f"file {number}", "--json").json["edit"]
        assert edited["file_id"] == number
    removed = civman("remove", FULL, "--yes", "--json").json["remove"]["removed"]
    assert [asset["file_id"] for asset in removed] == [98102]
    assert [asset["file_id"] for asset in civman("list", "--json").json["list"]["assets"]] == [98103]
    assert civman("restore", PRUNED).code == 3
    assert civman("restore", FULL).code == 0
    assert {asset["ref"] for asset in civman("list", "--json").json["list"]["assets"]} == {PRUNED, FULL}


def test_only_one_module_composes_printed_refs() -> None:
    package = Path(civman_package.__file__).parent
    found = set()
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = node.values
            elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add | ast.Mod):
                parts = [node.left, node.right]
            else:
                continue
            for text, value in itertools.pairwise(parts):
                is_at = isinstance(text, ast.Constant) and re.search("@(?:%[sd]|\\+?)$", str(text.value)) is not None
                if is_at and not isinstance(value, ast.Constant):
                    found.add(path.relative_to(package).as_posix())
    # the demo's server writes AIRs as CivitAI does; scales that change over the steps are written as 0.8@0.5
    assert found == {"domain/refs.py", "demo/response_json.py", "domain/adapters/scale_keyframes.py"}
