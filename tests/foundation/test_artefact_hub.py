"""The Hugging Face hub, by its own client, against a server that speaks its interface."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from foundation.artefact.hub import Address, hub_address
from foundation.artefact.index import INDEX, known_backbones
from foundation.artefact.layout import ALL_FILES, FILES, SUMS
from foundation.artefact.pushing import push_backbone
from foundation.backbone import BackboneError, load_backbone
from foundation.model import load_model
from tests.foundation.hub_server import HubServer
from tests.foundation.tuned_models import write_model

DEMO = INDEX.with_name("demo")
DIGEST = known_backbones()["demo"].entry.digest
NAME, URL = "lab/demo-mae", "hf://lab/demo-mae"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    server = HubServer()
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("SCANFM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_PROGRESS_BARS", True)
    # Large files go by the LFS protocol, as HF_HUB_DISABLE_XET=1 has it.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    yield server
    server.close()


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """Another backbone: the same with another card."""
    from foundation.artefact.saving import seal

    folder = tmp_path / "other"
    shutil.copytree(DEMO, folder)
    (folder / "README.md").write_text("# Another\n")
    seal(folder)
    return folder


def test_a_backbone_goes_up_and_comes_down_as_it_was(hub: HubServer, tmp_path: Path) -> None:
    at = push_backbone(DEMO, URL, message="First")
    repository = hub.repositories[NAME]
    assert at == f"{URL}@{repository.refs['main']}"
    assert repository.private
    files = repository.commits[repository.refs["main"]]
    assert set(files) == {*FILES, SUMS, ".gitattributes"}
    assert len(hub.large) == 2  # both files of tensors, by digest
    for place in (URL, at, Path(URL)):
        backbone = load_backbone(place)
        assert backbone.digest == DIGEST
        assert backbone.loaded is not None
        assert backbone.loaded.folder.is_relative_to(tmp_path / "cache")
    assert backbone.report().startswith(f"backbone  {Path(URL)} (from {URL})")
    assert not (backbone.loaded.folder / ".gitattributes").exists()


def test_a_commit_is_served_from_the_cache_once_it_is_there(hub: HubServer) -> None:
    at = push_backbone(DEMO, URL)
    load_backbone(at)
    hub.requests.clear()
    load_backbone(at)
    assert not any(" /lab/" in each for each in hub.requests)
    hub.close()
    load_backbone(at)
    with pytest.raises(BackboneError, match="hf://lab/unseen: the hub does not give it") as caught:
        load_backbone("hf://lab/unseen")
    assert "\n" not in str(caught.value)


def test_another_backbone_is_replaced_only_when_asked(hub: HubServer, other: Path) -> None:
    first = push_backbone(DEMO, URL)
    assert push_backbone(DEMO, URL) == first  # the same once more
    with pytest.raises(BackboneError, match=f"holds another backbone, digest {DIGEST[:16]}"):
        push_backbone(other, URL)
    second = push_backbone(other, URL, overwrite=True)
    assert load_backbone(URL).digest == load_backbone(other).digest
    assert load_backbone(first).digest == DIGEST
    branch = push_backbone(other, f"{URL}@trial")
    assert branch == second
    assert set(hub.repositories[NAME].refs) == {"main", "trial"}


def test_what_is_not_there_is_one_clear_line(hub: HubServer) -> None:
    push_backbone(DEMO, URL)
    for place, line in {
        "hf://lab/none": "RepositoryNotFoundError",
        f"{URL}@v9": "RevisionNotFoundError",
    }.items():
        with pytest.raises(BackboneError, match=f"{place}: the hub does not give it.*{line}") as e:
            load_backbone(place)
        assert "\n" not in str(e.value)
    hub.repositories["lab/empty"] = type(hub.repositories[NAME])()
    hub.repositories["lab/empty"].commit("main", {"README.md": b"# Empty\n"})
    with pytest.raises(BackboneError, match="hf://lab/empty: has no SHA256SUMS"):
        load_backbone("hf://lab/empty")


def test_a_damaged_copy_in_the_cache_is_fetched_again(hub: HubServer) -> None:
    at = push_backbone(DEMO, URL)
    loaded = load_backbone(at).loaded
    assert loaded is not None
    weights = (loaded.folder / "model.safetensors").resolve()
    os.truncate(weights, 1000)
    assert load_backbone(at).digest == loaded.digest
    repository = hub.repositories[NAME]
    files = repository.commits[repository.refs["main"]]
    files["model.safetensors"] = files["model.safetensors"][:-1] + b"x"
    os.truncate(weights, 1000)
    with pytest.raises(BackboneError, match=r"model\.safetensors: its SHA-256 is not the one"):
        load_backbone(at)


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("hf://a/b", Address("a/b", None)),
        ("hf://a/b@v1.0", Address("a/b", "v1.0")),
        ("hf://a/b.c@refs/pr/1", Address("a/b.c", "refs/pr/1")),
        ("hf://a", None),
        ("hf://a/b/c", None),
        ("hf://a/../b", None),
        ("hf://a/b@", None),
    ],
)
def test_addresses(url: str, address: Address | None) -> None:
    if address is None:
        with pytest.raises(BackboneError, match="an address of the hub is hf://org/name"):
            hub_address(url)
    else:
        assert hub_address(url) == address
        assert str(address) == url


def test_a_fine_tuned_model_goes_up_and_comes_down_with_its_head(
    hub: HubServer, tmp_path: Path
) -> None:
    folder = write_model(tmp_path / "model", "binary")
    (folder / "notes.txt").write_text("mine")
    at = push_backbone(folder, URL)
    files = hub.repositories[NAME].commits[hub.repositories[NAME].refs["main"]]
    assert set(files) == {*ALL_FILES, SUMS, ".gitattributes"}
    assert load_model(at).digest == load_backbone(folder).digest
    # The head of before is no part of a backbone that replaces it.
    push_backbone(DEMO, URL, overwrite=True)
    assert load_backbone(URL).digest == DIGEST
    with pytest.raises(BackboneError, match="is a backbone without a head"):
        load_model(URL)
