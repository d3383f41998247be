"""The forms of refs, as regular expressions for the module `refs`."""

import re

SCHEME = re.compile(r"[a-z][a-z0-9+.-]*://|//", re.IGNORECASE)
BARE_HOST = re.compile(r"([a-z0-9-]+\.)*civitai\.(com|red|green)(:[0-9]+)?([/?#]|$)", re.IGNORECASE)
PLAIN_PATH = re.compile(r"[.~/\\]|[a-z]:[\\/]", re.IGNORECASE)
FORCED = re.compile(r"(name|path|picture|hash|sha256|blake3|crc32|autov[123]):\s*(.+)", re.IGNORECASE)
NUMBER = re.compile(r"[1-9][0-9]{0,9}").fullmatch
SHORT = re.compile(r"(?:civitai:([0-9]+)|([0-9]*)@([0-9]+))(?:\+([0-9]+))?(?:\?(.*))?", re.IGNORECASE)
AIR = re.compile(
    r"(?P<urn>urn:)?(?P<air>air:)?(?:(?P<ecosystem>[a-z0-9_/-]+):(?:(?P<type>[a-z0-9_/-]+):)?)?"
    r"(?P<source>[a-z0-9_/-]+):(?P<id>[0-9]+)(?:@(?P<version>[0-9]+))?"
    r"(?:\+(?P<file>[0-9]+))?(?:\.(?P<format>[a-z0-9_-]+))?",
    re.IGNORECASE,
)
AIR_LIKE = re.compile(r"(urn|air):|(.*:)?civitai:", re.IGNORECASE)
OTHER_SOURCE = re.compile(
    r"(?:[a-z0-9_/-]+:)*?(huggingface|hf|openai|leonardo|replicate|orchestrator|stability|oci):\S+", re.IGNORECASE
)
NOT_MODELS = {
    "user": "a creator's page",
    "collections": "a collection",
    "articles": "an article",
    "bounties": "a bounty",
    "3d-models": "a 3D model",
    "challenges": "a challenge",
    "search": "a search page",
    "login": "the login page",
}
