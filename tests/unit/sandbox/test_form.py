"""Form bodies with brackets."""

from __future__ import annotations

from typing import Any

import pytest

from outbox_sandbox.form import MalformedForm, decode


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        (b"", {}),
        (b"a=1&b=", {"a": "1", "b": ""}),
        (b"a=1&a=2", {"a": "2"}),
        (b"metadata[outbox]=m%3D1&metadata[case]=a+b", {"metadata": {"outbox": "m=1", "case": "a b"}}),
        (b"metadata%5Boutbox%5D=m", {"metadata": {"outbox": "m"}}),
        (b"expand[]=x&expand[]=y", {"expand": {"0": "x", "1": "y"}}),
        (b"expand[0]=x&expand[1]=y", {"expand": {"0": "x", "1": "y"}}),
        (b"a[b][c]=1&a[b][d]=2", {"a": {"b": {"c": "1", "d": "2"}}}),
        (b"name=%C3%A9", {"name": "é"}),
    ],
)
def test_brackets_nest(text: bytes, fields: dict[str, Any]) -> None:
    """Names with brackets become nested fields; percent and plus are decoded in names and values."""
    assert decode(text) == fields


@pytest.mark.parametrize(
    "text", [b"a[b=1", b"a]=1", b"[a]=1", b"a[b]c=1", b"a=1&a[b]=1", b"a[b]=1&a=1", b"a=%ff", b"&".join([b"a=1"] * 1001)]
)
def test_malformed_forms_are_refused(text: bytes) -> None:
    """A name that is not well formed, a name used twice over, text that is not UTF-8, too many fields."""
    with pytest.raises(MalformedForm):
        decode(text)
