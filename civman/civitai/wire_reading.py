"""Parse JSON that has no fixed schema, with pydantic models that tolerate unreadable parts.

Every field may be missing, null or `[]`, and every enumerated value may be a new one. The requested object itself must
be an object with an id, else BadAnswer is raised. Inside it, a field that cannot be parsed counts as missing (`Maybe`),
and a list entry that cannot be parsed is skipped (`Each`). Both are reported through `Reading.tell`, so that one broken
entry neither hides the others nor goes unnoticed.
"""

import json
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, Self, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    PrivateAttr,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_validator,
)
from pydantic.alias_generators import to_camel

from civman.civitai import wire_values
from civman.civitai.wire_values import OnNotice
from civman.domain.search_query import LARGEST_ID
from civman.errors import BadAnswer

T = TypeVar("T")
W = TypeVar("W", bound="Wire")


@dataclass(frozen=True, slots=True)
class Reading:
    """Context of the validators: the current time, and the function that reports skipped data."""

    now: datetime
    tell: OnNotice


def _where(info: ValidationInfo) -> str:
    title = (info.config or {}).get("title") or "answer"
    number = (info.data or {}).get("id")
    return f"`{info.field_name}` of {title}" + (f" {number}" if number is not None else "")


def _tell(info: ValidationInfo, notice: str) -> None:
    if isinstance(info.context, Reading):
        info.context.tell(notice)


def _missing_if_broken(value: Any, read: ValidatorFunctionWrapHandler, info: ValidationInfo) -> Any:
    if value is None:
        return None
    try:
        return read(value)
    except ValidationError:
        if value not in ([], {}, ""):
            _tell(info, f"CivitAI sent {_where(info)} in a form that civman cannot read; treated as missing")
        return None


def _those_that_can_be_read(value: Any, read: ValidatorFunctionWrapHandler, info: ValidationInfo) -> Any:
    if isinstance(value, dict) and set(value) == {"items"}:
        value = value["items"]
    if value is None or value in ({}, ""):
        return []
    if not isinstance(value, list):
        _tell(info, f"CivitAI sent {_where(info)} in a form that civman cannot read; treated as empty")
        return []
    kept: list[Any] = []
    for place, item in enumerate(value):
        if item is None:
            continue
        try:
            kept += read([item])
        except ValidationError:
            _tell(info, f"CivitAI sent entry {place + 1} of {_where(info)} in an invalid form; skipped")
    return kept


Maybe = Annotated[T | None, WrapValidator(_missing_if_broken)]
Each = Annotated[list[T], WrapValidator(_those_that_can_be_read)]
Id = Annotated[int, Field(strict=True, ge=1, le=LARGEST_ID)]
Moment = Annotated[datetime, BeforeValidator(lambda raw: wire_values.timestamp(raw) if isinstance(raw, str) else raw)]


class Wire(BaseModel):
    """Base class for the objects in a response; `received` is the original JSON, unchanged."""

    model_config = ConfigDict(
        alias_generator=to_camel,
        coerce_numbers_to_str=True,
        protected_namespaces=(),
        allow_inf_nan=False,
        hide_input_in_errors=True,  # keep input out of error messages, because a response may contain signed URLs
    )
    _received: dict[str, Any] = PrivateAttr(default_factory=dict)

    @model_validator(mode="wrap")
    @classmethod
    def _keep(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        made = handler({} if data == [] else data)
        made._received = data if isinstance(data, dict) else {}  # noqa: SLF001  # one of its own
        return made

    @property
    def received(self) -> dict[str, Any]:
        """The object as received."""
        return self._received

    def raw(self, *, without: str = "") -> str:
        """Return the object as compact JSON, as received but without the key `without`."""
        kept = {key: value for key, value in self._received.items() if key != without}
        return json.dumps(kept, ensure_ascii=False, separators=(",", ":"))


def read(shape: type[W], answer: object, reading: Reading, what: str) -> W:
    """Validate a response as `shape`; `what` is its name in error messages. Raises: BadAnswer."""
    try:
        return shape.model_validate(answer, context=reading)
    except ValidationError as error:
        places = sorted({".".join(str(part) for part in fault["loc"]) or "all of it" for fault in error.errors()})
        raise BadAnswer(
            f"CivitAI's response is not {what}: {', '.join(places[:5])}",
            hint="try again; if it happens again, check `civitai_url` in the settings",
            fields=places,
        ) from None
