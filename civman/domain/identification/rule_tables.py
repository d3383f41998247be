"""All identification rules, with one table per question.

In each table the first matching rule wins, so specific rules come before general ones. No rule uses a file's name or
the claims in its metadata.
"""

from civman.domain.identification.adapter_rules import ADAPTED, CROSS_KV
from civman.domain.identification.backbone_rules import BACKBONES, CROSS, FLAGS, LATENT, MARKS, VARIANTS
from civman.domain.identification.part_rules import PARTS
from civman.domain.identification.rules import Rule
from civman.domain.identification.vae_rules import VAES

__all__ = ["ADAPTED", "ALL", "BACKBONES", "CROSS", "CROSS_KV", "FLAGS", "LATENT", "MARKS", "PARTS", "VAES", "VARIANTS"]

ALL: tuple[Rule, ...] = (*BACKBONES, *VARIANTS, *FLAGS, *MARKS, *PARTS, *VAES, *ADAPTED)
