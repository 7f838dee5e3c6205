"""Settings of the hub's client that do not fit: one sentence that names the setting, and never a secret."""

from __future__ import annotations

import hashlib
import socket

import pytest

from clear_core.weights import __main__, find_release
from clear_core.weights.client_errors import explanation
from clear_core.weights.part_file import PartFile, PartWriter
from tests.support.hub import NAME
from tests.support.hub_client import BIG, BIG_SHAPE, BLOCK, SMALL, Client, left, refused

pytest.importorskip("huggingface_hub")

# An en dash, as a text program makes it of a hyphen.
SECRET = "hf_geheim–geheim"

# Names of the packages that would carry a SOCKS proxy, for requests and for httpx.
WITHOUT_SOCKS = "sys.modules.update(socks=None, socksio=None)"


@pytest.fixture(scope="module")
def client(stand_in, tmp_path_factory):
    with Client(stand_in.endpoint, tmp_path_factory.mktemp("client") / "home", WITHOUT_SOCKS, NO_PROXY="") as client:
        yield client


@pytest.mark.parametrize(
    "changes, fragment",
    [
        ({"HTTP_PROXY": "socks5://me:geheim@127.0.0.1:9"}, "http_proxy begins with 'socks5', and the"),
        ({"ALL_PROXY": "socks5://127.0.0.1:9"}, "the proxy setting all_proxy begins with 'socks5', and the package"),
        ({"HTTP_PROXY": "quic://me:geheim@127.0.0.1:9"}, "http_proxy begins with 'quic'; expected http"),
        ({"HTTP_PROXY": "http://127.0.0.1:99999"}, "the proxy setting http_proxy is no address; expected one like"),
        ({"HF_HUB_ETAG_TIMEOUT": "soon"}, "HF_HUB_ETAG_TIMEOUT is 'soon'; expected a whole number of seconds"),
        ({"HF_HUB_DOWNLOAD_TIMEOUT": "10s"}, "HF_HUB_DOWNLOAD_TIMEOUT is '10s'; expected a whole number of seconds"),
        ({"HF_TOKEN": SECRET}, "the token for the hub holds letters that no token has (in HF_TOKEN)"),
        ({"HF_TOKEN_PATH": "/"}, "the token for the hub cannot be read (in the file /)"),
        ({"HF_ENDPOINT": "mirror.example"}, "HF_ENDPOINT is 'mirror.example'; expected an address like https://"),
        ({"HF_ENDPOINT": "ftp://me:geheim@mirror"}, "HF_ENDPOINT is 'ftp://mirror'; expected an address like https://"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_setting_that_does_not_fit_is_named(folder, hub, client, changes, fragment):
    answer = client.fetch(folder, **changes)
    refused(answer, folder, fragment, "https://huggingface.co" if "HF_ENDPOINT" in changes else None)
    assert "geheim" not in answer["error"]


def test_a_missing_file_of_certificates_is_named(folder, hub, client):
    """httpx reads the one variable, requests the other, and each of them only if it has use for it."""
    missing = "/no/such/certificates.pem"
    answer = client.fetch(folder, HF_ENDPOINT="https://localhost:9", SSL_CERT_FILE=missing, REQUESTS_CA_BUNDLE=missing)
    refused(answer, folder, f"is '{missing}', which does not exist; correct or unset it")


def test_anything_else_that_the_client_raises_is_one_sentence_without_secrets():
    sentence = explanation(KeyError("Bearer hf_geheim\nat https://me:geheim@mirror"))
    assert sentence.startswith("the package huggingface_hub failed (KeyError: ") and "https://mirror" in sentence
    assert "geheim" not in sentence and sentence.isprintable()


def test_no_network_is_still_no_network_beside_settings_that_fit(folder, client):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        closed = f"http://127.0.0.1:{free.getsockname()[1]}"
    answer = client.fetch(
        folder, HF_ENDPOINT=closed, HF_TOKEN="hf_right", HF_HUB_ETAG_TIMEOUT="5", HF_HUB_DOWNLOAD_TIMEOUT="5"
    )
    refused(answer, folder, "there is no connection to the hub, or it broke (")


def test_a_public_file_is_fetched_without_a_token_that_the_hub_refuses(folder, hub, client):
    hub.refuses_tokens = 0
    assert client.fetch(folder, HF_TOKEN="hf_expired")["path"] == str(folder / NAME)
    assert (folder / NAME).read_bytes() == SMALL
    assert "the hub refused the token (HTTP 401: expired or not valid)" in client.logged()
    # Only the first question carried the token.
    assert [token for _, path, _, token in hub.requests if path.startswith("/Huage001/")] == [
        "Bearer hf_expired",
        *2 * [None],
    ]


def test_a_token_that_expires_between_the_two_requests_is_left_out_too(folder, hub, client):
    hub.refuses_tokens = 1
    assert client.fetch(folder, HF_TOKEN="hf_expired")["path"] == str(folder / NAME)
    sent = [token for _, path, _, token in hub.requests if path.startswith("/Huage001/")]
    assert sent == ["Bearer hf_expired", "Bearer hf_expired", None]


def test_an_expired_token_for_a_file_that_is_not_public_is_said_as_it_is(folder, hub, client):
    hub.status, hub.refuses_tokens = 401, 0
    refused(
        client.fetch(folder, HF_TOKEN="hf_expired"),
        folder,
        "the hub refused the token (HTTP 401: expired or not valid); log in again with `hf auth login`, or remove it "
        "(in HF_TOKEN)",
    )


def test_a_good_token_without_access_is_still_gated(folder, hub, client):
    hub.status, hub.extra = 403, {"X-Error-Code": "GatedRepo"}
    refused(client.fetch(folder, HF_TOKEN="hf_good"), folder, "refused it (HTTP 403: gated, private or renamed)")


def test_the_address_by_hand_is_the_mirrors_and_without_its_password(folder, hub, client):
    hub.status = 404
    mirror = hub.endpoint.replace("//", "//me:geheim@")
    refused(client.fetch(folder, HF_ENDPOINT=mirror + "/"), folder, "does not have it (HTTP 404)", hub.endpoint)


def test_every_address_that_is_shown_is_the_mirrors(monkeypatch, capsys):
    monkeypatch.setenv("HF_ENDPOINT", "https://hub.example/")
    assert find_release("clear_local_8").url == f"https://hub.example/Huage001/CLEAR/resolve/main/{NAME}"
    assert __main__.main(["list"]) == 0 and "From https://hub.example/Huage001/CLEAR." in capsys.readouterr().out


def part_of(folder, hub) -> PartFile:
    """The part file of the hub's file, in a folder made for it."""
    etag = hub.announced["X-Linked-Etag"].strip('"')
    (folder / ".fetch").mkdir(parents=True)
    return PartFile(folder / ".fetch" / f"{NAME}.{hashlib.sha256(etag.encode()).hexdigest()[:16]}.part")


@pytest.mark.parametrize("etag", [None, "a-mirrors-own"], ids=["sha256", "no_sha256"])
def test_a_part_with_holes_is_not_continued(folder, hub, client, etag):
    """As hf_transfer leaves it: its length is nearly that of the whole, its middle is empty."""
    hub.serve(BIG)
    if etag:
        hub.announced["X-Linked-Etag"] = f'"{etag}"'
    part_of(folder, hub).path.write_bytes(BIG[:1000] + bytes(len(BIG) - 2000))
    client.fetch(folder, BIG_SHAPE)
    assert hub.transfers == [None] and (folder / NAME).read_bytes() == BIG and left(folder) == {NAME: len(BIG)}


@pytest.mark.parametrize("damaged", [False, True])
def test_a_part_that_changed_after_its_record_is_not_continued(folder, hub, client, damaged):
    """As a machine leaves it that lost power: the length was written, and the blocks were not."""
    hub.serve(BIG)
    hub.announced["X-Linked-Etag"] = '"a-mirrors-own"'
    part = part_of(folder, hub)
    with PartWriter(part, len(BIG), None) as file:
        file.write(BIG[:BLOCK])
    if damaged:
        part.path.write_bytes(BIG[: BLOCK // 2] + bytes(BLOCK // 2))
    client.fetch(folder, BIG_SHAPE)
    assert hub.transfers == [None if damaged else f"bytes={BLOCK}-"] and (folder / NAME).read_bytes() == BIG
    assert left(folder) == {NAME: len(BIG)}


# Stands in for the package: writes the file from its end, and then fails, dies or goes on as TRANSFER says.
TRANSFER = """
import types, urllib.request
def transfer(url, filename, callback=None, **rest):
    content = urllib.request.urlopen(url).read()
    with open(filename, "r+b") as file:
        file.seek(len(content) // 2)
        file.write(content[len(content) // 2:])
        if os.environ["TRANSFER"] == "dies":
            file.flush()
            os._exit(1)
        if os.environ["TRANSFER"] == "fails":
            raise ValueError("too many failures")
        file.seek(0)
        file.write(content[:len(content) // 2])
sys.modules["hf_transfer"] = types.ModuleType("hf_transfer")
sys.modules["hf_transfer"].download = transfer
def fetch(*args):
    from huggingface_hub import constants
    constants.DOWNLOAD_CHUNK_SIZE = 1 << 20
    if os.environ.get("TRANSFER") == "missing":
        sys.modules["hf_transfer"] = None
    return download.fetch(*args)
"""


@pytest.mark.slow
def test_hf_transfer_fetches_or_is_named(folder, hub, fresh, client):
    """Clients from version 1 on have no use for it; older ones let it write into the file, in any order."""
    hub.serve(BIG)
    setting = {"HF_HUB_ENABLE_HF_TRANSFER": "1"}
    faulty = fresh(hub.endpoint, TRANSFER)
    for case, why in (("fails", "which failed"), ("missing", "which is not installed")):
        if case == "missing":
            assert faulty.fetch(folder, BIG_SHAPE, TRANSFER="works", **setting)["path"] == str(folder / NAME)
            assert (folder / NAME).read_bytes() == BIG
            (folder / NAME).unlink()
        answer = faulty.fetch(folder, BIG_SHAPE, TRANSFER=case, **setting)
        if "error" in answer:
            refused(answer, folder, f"HF_HUB_ENABLE_HF_TRANSFER asks for the package hf_transfer, {why}; unset it")
        else:
            assert (folder / NAME).read_bytes() == BIG
            (folder / NAME).unlink()
    faulty.ask(folder, BIG_SHAPE, {"TRANSFER": "dies", **setting})
    faulty.process.stdout.readline()  # an answer, or the end of a process that died
    # Whatever lies there now, a client without hf_transfer makes the right file of it.
    client.fetch(folder, BIG_SHAPE)
    assert (folder / NAME).read_bytes() == BIG and left(folder) == {NAME: len(BIG)}
