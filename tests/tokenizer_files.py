"""A small `tokenizer.json`, trained on short texts."""

from collections.abc import Sequence

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from civman.prompts.tokenizer import byte_symbols


def json_tokenizer(texts: Sequence[str], size: int, *, start: str = "", end: str = "") -> Tokenizer:
    """Train byte-level pairs with `size` ids; `start` and `end`: special tokens around every text."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    special = [token for token in (start, end) if token]
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=special, initial_alphabet=[*byte_symbols()], show_progress=False
    )
    made.train_from_iterator(texts, trainer)
    if special:
        single = " ".join(token for token in (start, "$A", end) if token)
        made.post_processor = processors.TemplateProcessing(
            single=single, special_tokens=[(token, made.token_to_id(token)) for token in special]
        )
    return made
