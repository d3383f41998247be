"""All commands, each with its panel in `civman --help` and the examples at the end of its help page."""

import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Command:
    """A command of the command line. `alias` is a hidden second name; `examples` are complete command lines."""

    name: str
    place: str
    """Where the command's function is: module and function, such as "list_command.list_assets"."""
    examples: tuple[str, ...]
    alias: str | None = None

    @property
    def run(self) -> Callable[..., Any]:
        """The command's function. Only the command's own module is imported: importing all of them takes 0.06 s."""
        module, _, function = self.place.partition(".")
        found: Callable[..., Any] = getattr(importlib.import_module(f"civman.cli.{module}"), function)
        return found

    @property
    def epilog(self) -> str:
        """The examples, formatted for the end of a help page.

        Each example is a paragraph of its own, because typer joins the lines of a paragraph.
        """
        return "\n\n".join(["Examples:", *(f"  $ {line}" for line in self.examples)])


PANELS: dict[str, tuple[Command, ...]] = {
    "Find and download": (
        Command("search", "search_command.search", (
            "civman search anime --type LORA --base-model Illustrious",
            "civman search --sort newest --period week --limit 20",
            "civman search ink --fits 4384@128713",
        )),
        Command("show", "show_command.show", (
            "civman show 4384",
            "civman show https://civitai.com/models/4384?modelVersionId=128713",
            "civman show picture.png",
        )),
        Command("download", "download_command.download", (
            "civman download 4384@128713",
            "civman download 827184 --file fp16",
            "civman download 12345 --for 4384@128713",
        )),
        Command("check", "check_command.check", (
            "civman check 4384@128713 --lora 12345:0.8",
            "civman check model.safetensors --vae vae.safetensors",
        )),
        Command("inspect", "inspect_command.inspect", (
            "civman inspect model.safetensors",
            "civman inspect 4384@128713 --json",
        )),
    ),
    "Library": (
        Command("list", "list_command.list_assets", (
            "civman list",
            "civman list anime --type LORA --sort size",
            "civman list --fits 4384@128713",
        ), alias="ls"),
        Command("import", "import_command.import_", (
            "civman import ~/ComfyUI/models",
            "civman import model.safetensors --move",
        )),
        Command("edit", "edit_command.edit", (
            "civman edit 4384@128713 --alias dreams --rating 5",
            "civman edit dreams --note 'good for landscapes' --tag favourite",
        )),
        Command("verify", "verify_command.verify", (
            "civman verify",
            "civman verify --full --repair",
        )),
        Command("outdated", "outdated_command.outdated", ("civman outdated", "civman outdated dreams")),
        Command("update", "outdated_command.update", ("civman update", "civman update dreams --yes")),
        Command("remove", "remove_command.remove", (
            "civman remove 4384@128713",
            "civman remove dreams --dry-run",
        ), alias="rm"),
        Command("restore", "remove_command.restore", ("civman restore", "civman restore dreams")),
        Command("du", "space_commands.du", ("civman du", "civman du --by base_model")),
        Command("gc", "space_commands.gc", ("civman gc --dry-run", "civman gc --yes")),
    ),
    "Images": (
        Command("render", "render_command.render", (
            'civman render "a harbour at dawn"',
            'civman render 4384@128713 "a harbour at dawn" --steps 30 --size 768x512',
            'civman render dreams "a cat" --lora 12345:0.8 --seed 7 --count 4 --output cats/',
            'civman render "a sailor" --preset portrait --seed 7',
            'civman render dreams "a cat" --grid cfg=4,7,10 --grid sampler="Euler a,DPM++ 2M"',
        )),
        Command("replay", "replay_command.replay", (
            "civman replay picture.png",
            "civman replay picture.png --fetch",
            "civman replay picture.png --set seed=8 --output other.png",
        )),
        Command("upscale", "upscale_command.upscale", (
            "civman upscale picture.png --model 4x-UltraSharp",
            "civman upscale photos/ --model 'R-ESRGAN 4x+' --scale 2 --output large/",
            "civman upscale picture.png --model 147759@164821 --size 3840x2160",
        )),
        Command("serve", "serve_command.serve", ("civman serve", "civman serve --port 8188 --keep 12GB")),
        Command("jobs", "jobs_command.jobs", ("civman jobs", "civman jobs --follow 3", "civman jobs --cancel 3")),
        Command("renders", "renders_command.renders", ("civman renders", "civman renders harbour --limit 10")),
    ),
    "Projects and other programs": (
        Command("add", "project_commands.add", ("civman add 4384@128713", "civman add 12345 --no-download")),
        Command("drop", "project_commands.drop", ("civman drop 4384@128713",)),
        Command("sync", "project_commands.sync", ("civman sync", "civman sync --check")),
        Command("export", "export_command.export", (
            "civman export models.civman 4384@128713",
            "civman export models.civman --lock",
        )),
        Command("push", "store_commands.push", (
            "civman push s3://bucket/models 4384@128713",
            "civman push --all",
        )),
        Command("pull", "store_commands.pull", (
            "civman pull s3://bucket/models --list",
            "civman pull 4384@128713",
        )),
        Command("link", "link_command.link", (
            "civman link ~/ComfyUI/models --layout comfyui",
            "civman link ~/ComfyUI/models --remove",
        )),
    ),
    "This computer": (
        Command("login", "account_commands.login", ("civman login", "civman login < key.txt")),
        Command("logout", "account_commands.logout", ("civman logout",)),
        Command("whoami", "account_commands.whoami", ("civman whoami",)),
        Command("config", "config_command.config", (
            "civman config",
            "civman config render.checkpoint 4384@128713",
            "civman config render.presets.portrait.size 832x1216",
        )),
        Command("doctor", "doctor_command.doctor", ("civman doctor", "civman doctor --json")),
        Command("demo", "demo_command.demo", ("civman demo", "civman demo --serve")),
        Command("help", "help_command.help_", ("civman help render",)),
    ),
}  # fmt: skip
"""Maps each panel of `civman --help` to its commands, in the order in which they are listed."""


def commands() -> Iterator[tuple[str, Command]]:
    """Iterate over all commands with their panels, in the order of `civman --help`."""
    for panel, listed in PANELS.items():
        for each in listed:
            yield panel, each
