"""The catalog loader: five shipped contracts, and YAML that cannot mean two things."""

from importlib import resources

import pytest

from outbox_providers import catalog
from outbox_providers.catalog import CatalogError, documents, load
from outbox_providers.lint import lint


def echo_text() -> str:
    """The shipped YAML of sandbox.echo."""
    text = (resources.files("outbox_providers") / "catalog" / "sandbox.yaml").read_text(encoding="utf-8")
    return text.partition("\n---\n")[0]


def test_the_shipped_contracts() -> None:
    """The shipped tools, each of its class and scope, none with a finding."""
    found = {each.tool: (each.guarantee_class, [rule.scope for rule in each.identity]) for each in catalog.shipped()}
    assert found == {
        "sandbox.echo": ("A", ["run"]),
        "sandbox.label.set": ("A", ["environment"]),
        "sandbox.mail.schedule": ("B", ["environment"]),
        "sandbox.message.send": ("A", ["environment"]),
        "sandbox.record.create": ("A", ["environment"]),
        "sandbox.ticket.create": ("B", ["environment"]),
        "sendgrid.mail.send": ("C", ["environment", "run"]),
        "stripe.customer.create": ("A", ["environment"]),
        "stripe.refund.create": ("A", ["environment"]),
    }
    assert [lint(each) for each in catalog.shipped()] == [[]] * len(found)
    assert catalog.shipped() is catalog.shipped()


def test_the_refund_is_the_published_one() -> None:
    """The refund stands as interfaces.md section 5 writes it out; the pinned API version is the only addition."""
    refund = next(each for each in catalog.shipped() if each.tool == "stripe.refund.create")
    document = refund.document()
    assert document["identity"][0]["key"] == "refund:{payment_intent}:{reference}"
    assert document["amount"] == {"value": "input.amount", "currency": "connection.currency", "check": "result.currency"}
    assert document["request"]["headers"] == {"Stripe-Version": "2023-08-16"}
    assert [(row["status"], row["outcome"], row["stored"]) for row in document["outcomes"]] == [
        ([200], "succeeded", False),
        ([409], "deferred", False),
        ([401, 429], "deferred", False),
        ([400], "unknown", False),
        ([402], "rejected", True),
        ([400, 403, 404], "rejected", False),
    ]
    assert (document["not_after"], document["body_life"], document["compensation"]) == ("1h", "0s", "impossible")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("tool: a.b\ntool: a.c\n", "said twice"),
        ("request: {url: /a, url: /b}\n", "said twice"),
        ("a: &x 1\nb: *x\n", "anchors and aliases"),
        ("a: *x\n", "anchors and aliases"),
        ("a: &x {b: 1}\n<<: 1\n", "anchors and aliases"),
        ("1: a\n", "name of a member is text"),
        ("true: a\n", "name of a member is text"),
        ("[a]: b\n", "name of a member is text"),
        ("a: !!python/object/apply:os.system [id]\n", "could not determine a constructor"),
        ("a: !custom b\n", "could not determine a constructor"),
        ("- a\n- b\n", "each document is one contract"),
        ("just words\n", "each document is one contract"),
        ("a: b\n---\n", "each document is one contract"),
        ("a: [\n", "expected"),
        ("a: {" * 3000, "x"),
        ("a: \x00\n", "not allowed"),
    ],
)
def test_ambiguous_yaml_is_refused(text: str, reason: str) -> None:
    """What two readers could read differently, or what runs code, is an error that names the file."""
    with pytest.raises(CatalogError, match=reason) as caught:
        documents(text, source="x.yaml")
    assert str(caught.value).startswith("x.yaml: ")


def test_words_of_old_yaml_stay_text() -> None:
    """`no` is a word, 1:30 and a date are texts; only JSON's words and numbers are more than text."""
    text = "[no, yes, on, off, 2023-08-16, 1:30, 0o7, 010, 0x1f, 1_000, =, .inf, true, false, null, ~, 12, -3, 1.5, 1e3, '5']"
    assert documents(f"a: {text}\n", source="x") == [
        {
            "a": [
                "no",
                "yes",
                "on",
                "off",
                "2023-08-16",
                "1:30",
                "0o7",
                "010",
                "0x1f",
                "1_000",
                "=",
                ".inf",
                True,
                False,
                None,
                None,
                12,
                -3,
                1.5,
                1000.0,
                "5",
            ]
        }
    ]


def test_a_merge_key_is_only_a_name() -> None:
    """`<<` merges nothing: a contract says each member where it stands."""
    assert documents("<<: {a: 1}\nb: 2\n", source="x") == [{"<<": {"a": 1}, "b": 2}]


def test_a_contract_of_another_shape_is_refused_with_its_place() -> None:
    """The message names the file, the tool and the member."""
    with pytest.raises(CatalogError, match=r"x\.yaml: sandbox\.echo: request\.deadline: .*digits and a unit"):
        load(echo_text().replace("deadline: 20s", "deadline: 20"), source="x.yaml")
    with pytest.raises(CatalogError, match=r"x\.yaml: sandbox\.echo: spare: .*not permitted"):
        load(echo_text() + "\nspare: 1\n", source="x.yaml")


def test_what_the_linter_finds_is_not_loaded() -> None:
    """A contract with a finding never reaches a gateway."""
    assert len(load(echo_text(), source="x.yaml")) == 1
    with pytest.raises(CatalogError, match=r"x\.yaml: sandbox\.echo: owner: a tool that writes has an owner"):
        load(echo_text().replace("owner: sandbox", "owner: ''"), source="x.yaml")


def test_an_endless_text_is_refused_unread() -> None:
    """The limit is on the text, before any parsing."""
    with pytest.raises(CatalogError, match="longer than"):
        load("#" * (catalog.DOCUMENT_CHARACTERS_MAX + 1), source="x.yaml")
