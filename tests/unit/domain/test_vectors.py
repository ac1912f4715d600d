"""The published test vectors: our code agrees with them, and so does a computation with the standard library alone."""

import base64
import hashlib
import hmac
import json
import struct
import zlib
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from outbox_domain import canonical, identity, ids, json_text, ledger, scoped_key
from outbox_domain.binding import BoundInput
from outbox_domain.contract import ToolContract
from outbox_domain.errors import OutboxError

VECTORS = Path(__file__).parents[3] / "docs" / "vectors"


def vectors(name: str) -> dict[str, Any]:
    """One file of vectors."""
    document = json.loads((VECTORS / f"{name}.json").read_text(encoding="utf-8"))
    assert isinstance(document, dict)
    return document


def plain_canonical(value: object) -> bytes:
    """RFC 8785 for values without exponents and with names in the Basic Multilingual Plane, which is all these vectors hold."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def plain_digest(key: str, purpose: str, value: object) -> str:
    """A keyed digest as `docs/vectors/README.md` describes it."""
    content = b"agent-outbox/" + purpose.encode() + b"/v1\n" + plain_canonical(value)
    return hmac.new(bytes.fromhex(key), content, hashlib.sha256).hexdigest()


def contract(**members: Any) -> ToolContract:
    """A contract with these members."""
    return ToolContract.from_document(
        {
            "tool": "example.thing.create",
            "version": 1,
            "kind": "mutating",
            "class": "A",
            "input": {"type": "object"},
            "request": {"driver": "http_json", "method": "POST", "url": "/things", "deadline": "20s"},
            **members,
        }
    )


def identify(file: dict[str, Any], tool: ToolContract, case: dict[str, Any]) -> identity.Identity:
    """The identity of a case."""
    return identity.identify(
        tool,
        BoundInput(value=case["input"], amount=None, currency=None),
        reference=case.get("reference"),
        occurrence=1,
        run_lineage_id=case.get("run_lineage_id", "01890a5d-ac96-774b-bcce-b302099a8057"),
        secrets=identity.Secrets(digest_key=bytes.fromhex(file["digest_key"]), provider_key_secret=bytes(32)),
    )


def test_every_file_is_told_in_the_readme() -> None:
    """No vector is published without its recipe, and no recipe without vectors."""
    readme = (VECTORS / "README.md").read_text(encoding="utf-8")
    files = sorted(path.name for path in VECTORS.glob("*.json"))
    assert files
    assert [name for name in files if f"`{name}`" not in readme] == []


def test_canonical() -> None:
    """Texts and doubles have the published canonical bytes."""
    file = vectors("canonical")
    for case in file["cases"]:
        assert canonical.canonical(json_text.parse(case["text"].encode())).decode() == case["canonical"]
    for case in file["numbers"]:
        (number,) = struct.unpack(">d", bytes.fromhex(case["ieee754"]))
        assert canonical.canonical(number).decode() == case["canonical"]


def test_json_text() -> None:
    """What is read is read, what is refused is refused at the published place."""
    file = vectors("json-text")
    assert file["limits"] == {"bytes_max": json_text.BYTES_MAX, "depth_max": json_text.DEPTH_MAX}
    for case in file["accepted"]:
        assert canonical.canonical(json_text.parse(case["text"].encode())).decode() == case["canonical"]
    for case in file["refused"]:
        with pytest.raises(OutboxError) as caught:
            json_text.parse(case["text"].encode())
        assert (caught.value.code, caught.value.path) == (case["code"], case["path"])


def test_input_digest() -> None:
    """Input and review digests are the published ones."""
    file = vectors("input-digest")
    for case in file["cases"]:
        found = identify(
            file, contract(identity={"digest": "input", "scope": "run"}, presentational=case["presentational"]), case
        )
        assert canonical.digest_text(found.input_digest) == case["input_digest"]
        assert canonical.digest_text(found.review_digest) == case["review_digest"]
        assert case["review_digest"] == "hmac-sha256:" + plain_digest(file["digest_key"], "review-digest", case["input"])
        kept = json.loads(json.dumps(case["input"]))
        for name in case["presentational"]:
            holder, _, last = name.rpartition(".")
            (kept[holder] if holder else kept).pop(last)
        assert case["input_digest"] == "hmac-sha256:" + plain_digest(file["digest_key"], "input-digest", kept)


def test_declared_field() -> None:
    """What is kept of an input is the published map."""
    file = vectors("declared-field")
    for case in file["cases"]:
        tool = contract(identity={"digest": "input", "scope": "run"}, declared=case["declared"], personal=case["personal"])
        assert identify(file, tool, case).declared == case["kept"]
        for name, kept in case["kept"].items():
            value = case["input"][name]
            if isinstance(kept, str):
                digest = plain_digest(file["digest_key"], "declared-field", {"field": name, "value": value})
                assert kept == "hmac-sha256:" + digest
            else:
                assert kept == value


def test_operation_key() -> None:
    """Operation keys are the published ones, refusals too."""
    file = vectors("operation-key")
    for case in file["cases"]:
        tool = contract(identity={"key": case["template"], "scope": "environment"}, personal=case["personal"])
        assert identify(file, tool, case).operation_key == case["operation_key"]
    for case in file["refused"]:
        tool = contract(identity={"key": case["template"], "scope": "environment"}, personal=case["personal"])
        with pytest.raises(OutboxError) as caught:
            identify(file, tool, case)
        assert (caught.value.code, caught.value.path) == (case["code"], case["path"])
    for case in file["digest_keyed"]:
        found = identify(file, contract(identity={"digest": "input", "scope": "run"}), case)
        assert (found.operation_key, found.scope) == (case["operation_key"], case["scope"])
    personal = plain_digest(file["digest_key"], "personal-key-field", {"field": "email", "value": "ada@example.com"})
    assert f"customer:hmac-sha256-{personal}" in [case["operation_key"] for case in file["cases"]]


def test_provider_key() -> None:
    """Provider keys and markers are the published ones; generations share a marker and nothing else does."""
    file = vectors("provider-key")
    secret = bytes.fromhex(file["provider_key_secret"])
    names = ("organization", "project", "environment", "connection", "tool")
    for case in file["cases"]:
        effect: dict[str, Any] = {
            "scope": identity.Scope(**{name: case[name] for name in names}),
            "key_scope": case["key_scope"],
            "operation_key": case["operation_key"],
            "occurrence": case["occurrence"],
        }
        assert identity.provider_key(secret, generation=case["generation"], **effect) == case["provider_key"]
        assert identity.marker(secret, **effect) == case["marker"]
        plain = {name: case[name] for name in (*names, "operation_key", "occurrence")} | {"scope": case["key_scope"]}
        assert case["marker"] == "obm_" + plain_digest(file["provider_key_secret"], "marker", plain)
        plain["generation"] = case["generation"]
        assert case["provider_key"] == "obx_" + plain_digest(file["provider_key_secret"], "provider-key", plain)
    cases = file["cases"]
    assert len({case["provider_key"] for case in cases}) == len(cases)
    assert len({case["marker"] for case in cases}) == len(cases) - sum(case["generation"] > 0 for case in cases)


def test_scoped_key() -> None:
    """Keys and their digests are the published ones; damaged ones are refused."""
    file = vectors("scoped-key")
    for case in file["cases"]:
        key_id, secret = bytes.fromhex(case["key_id"]), bytes.fromhex(case["secret"])
        text, digest = scoped_key.mint(case["environment"], key_id, secret)
        assert (text, digest.hex()) == (case["text"], case["digest"])
        parsed = scoped_key.parse(text)
        assert (parsed.environment, parsed.key_id, parsed.secret) == (case["environment"], case["key_id_text"], secret)
        body = f"obx_{case['environment']}_{base64.b32encode(key_id).decode().lower()}_{secret.hex()}"
        assert case["text"] == body + format(zlib.crc32(body.encode()), "08x")
        assert case["digest"] == hashlib.sha256(b"agent-outbox/scoped-key/v1\n" + secret).hexdigest()
    for text in file["refused"]:
        with pytest.raises(OutboxError) as caught:
            scoped_key.parse(text)
        assert caught.value.code == "invalid-key"


def test_ledger_leaf() -> None:
    """Leaves and their hashes are the published ones."""
    for case in vectors("ledger-leaf")["cases"]:
        row = dict(case["row"])
        row["at"] = datetime.fromisoformat(row["at"])
        if row.get("input_digest") is not None:
            row["input_digest"] = canonical.read_digest_text(row["input_digest"])
        for column in ("organization_id", "environment_id", "reservation_id", "attempt_id"):
            if row.get(column) is not None:
                row[column] = UUID(row[column])
        leaf = ledger.leaf(row)
        assert leaf.decode() == case["leaf"]
        assert ledger.leaf_hash(leaf).hex() == case["leaf_hash"]
        head, _, content = case["leaf"].partition("\n")
        assert head == "agent-outbox/ledger-entry/v1"
        assert plain_canonical(json.loads(content)).decode() == content
        assert case["leaf_hash"] == hashlib.sha256(b"\0" + case["leaf"].encode()).hexdigest()


def test_uuid7() -> None:
    """Ids made of a time and random bits are the published ones."""
    for case in vectors("uuid7")["cases"]:
        assert str(ids.uuid7(case["milliseconds"], bytes.fromhex(case["random"]))) == case["uuid"]
