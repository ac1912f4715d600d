"""The catalog: tool contracts as YAML files, one file per provider, one document per contract; shipped with the package.

The reader takes less than YAML allows, so that a contract means what it looks like: a member said twice, anchors, aliases, merge
keys and tags are refused, and what only old YAML takes for something else (`no`, `1:30`, dates) stays text.
"""

import functools
import re
from collections.abc import Hashable
from importlib import resources
from typing import Any

import yaml
from pydantic import ValidationError

from outbox_domain.contract import ToolContract
from outbox_providers.lint import lint

DOCUMENT_CHARACTERS_MAX = 1 << 20
"""Longer catalog files are refused unread."""


class CatalogError(Exception):
    """A catalog cannot be loaded; the sentence says where and why."""


class _Loader(yaml.SafeLoader):
    """Reads the part of YAML that means the same to everybody."""

    # Only the words of JSON are more than text; SafeLoader's own table would make `no` false and `2023-08-16` a date.
    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012  (the base class's own shape)

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            raise yaml.constructor.ConstructorError(None, None, "anchors and aliases are refused", event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag != "tag:yaml.org,2002:str":
                raise yaml.constructor.ConstructorError(None, None, "the name of a member is text", key.start_mark)
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} is said twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


for _tag, _pattern, _first in (
    ("bool", r"true|false", "tf"),
    ("null", r"null|~|", "n~"),
    ("int", r"-?(0|[1-9][0-9]*)", "-0123456789"),
    ("float", r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?", "-0123456789"),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"(?:{_pattern})\Z"), list(_first))


def load(text: str, *, source: str) -> tuple[ToolContract, ...]:
    """Reads the contracts of one YAML text.

    Args:
        text: a stream of documents, one contract each.
        source: where it came from, for the messages of errors.

    Returns:
        The contracts, in their order, none of which the linter has anything against.

    Raises:
        CatalogError: if the text is no such YAML, a contract has another shape, or the linter finds something.
    """
    if len(text) > DOCUMENT_CHARACTERS_MAX:
        raise CatalogError(f"{source} is longer than {DOCUMENT_CHARACTERS_MAX} characters")
    contracts: list[ToolContract] = []
    for document in documents(text, source=source):
        place = f"{source}: {document.get('tool', 'a contract without name')}"
        try:
            contract = ToolContract.from_document(document)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            raise CatalogError(f"{place}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error
        findings = lint(contract)
        if findings:
            raise CatalogError(f"{place}: {'; '.join(findings)}")
        contracts.append(contract)
    return tuple(contracts)


def documents(text: str, *, source: str) -> list[dict[str, Any]]:
    """The documents of one YAML text, before they are taken for contracts.

    Raises:
        CatalogError: if the text is not the part of YAML that is read here, or a document is no mapping.
    """
    try:
        found = list(yaml.load_all(text, Loader=_Loader))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise CatalogError(f"{source}: {error}") from error
    for document in found:
        if not isinstance(document, dict):
            raise CatalogError(f"{source}: each document is one contract")
    return found


@functools.cache
def shipped() -> tuple[ToolContract, ...]:
    """The contracts that come with the package, by tool and version; read once per process.

    Raises:
        CatalogError: if a shipped file is damaged.
    """
    contracts: dict[tuple[str, int], ToolContract] = {}
    folder = resources.files("outbox_providers") / "catalog"
    for file in sorted(folder.iterdir(), key=lambda each: each.name):
        if not file.name.endswith(".yaml"):
            continue
        for contract in load(file.read_text(encoding="utf-8"), source=file.name):
            if contract.provider != file.name.removesuffix(".yaml"):
                raise CatalogError(f"{file.name}: {contract.tool} belongs to another provider's file")
            if (contract.tool, contract.version) in contracts:
                raise CatalogError(f"{file.name}: {contract.tool} version {contract.version} stands twice")
            contracts[contract.tool, contract.version] = contract
    return tuple(contracts[name] for name in sorted(contracts))
