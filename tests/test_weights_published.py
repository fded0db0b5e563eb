"""Published weights by name: downloaded from a server on this machine, checked and kept."""

import errno
import hashlib
import http.server
import json
import os
import re
import threading
import time

import numpy as np
import pytest
from helpers.pth import save_pth
from helpers.server import Server
from safetensors.numpy import save
from test_weights_find import RESNET

from jseg import config as configs
from jseg import download
from jseg.cli import main
from jseg.types import InputError
from jseg.weights import TORCHVISION_FILES, find_network, get_published, published

WEIGHTS = save(RESNET)
DIGITS = hashlib.sha256(WEIGHTS).hexdigest()
NAMED = f"resnet18-{DIGITS[:8]}.safetensors"


@pytest.fixture
def server(monkeypatch, tmp_path):
  """A server that has torchvision's `resnet18` and stands for the Hugging Face Hub, too."""
  server = Server()
  server.files[f"/{NAMED}"] = WEIGHTS
  for name in ("http_proxy", "HTTP_PROXY", "HF_TOKEN"):
    monkeypatch.delenv(name, raising=False)
  monkeypatch.setenv("JSEG_CACHE", str(tmp_path / "cache"))
  monkeypatch.setenv("HF_ENDPOINT", server.url)
  monkeypatch.setattr(published, "TORCHVISION", f"{server.url}/")
  monkeypatch.setitem(TORCHVISION_FILES, "resnet18", NAMED)
  yield server
  server.close()


def put_on_hub(server, repo, files, revision="main"):
  """Puts files where the Hub has them, and their list."""
  listing = [{"type": "directory", "path": "a", "oid": "0"}]
  for path, data in files.items():
    lfs = {"lfs": {"oid": hashlib.sha256(data).hexdigest(), "size": len(data)}}
    listing.append({"type": "file", "path": path, "oid": "0", **(lfs if len(data) > 100 else {})})
    server.files[f"/{repo}/resolve/{revision}/{path}"] = data
  path = f"/api/models/{repo}/tree/{revision}?recursive=true"
  server.files[path] = json.dumps(listing).encode()


def parts(path):
  return [p.name for p in path.rglob("*") if p.is_file()]


def test_every_published_file_tells_its_checksum():
  for name, file in TORCHVISION_FILES.items():
    assert re.search(r"-[0-9a-f]{8}\.pth$", file), name


def test_torchvision(server, tmp_path):
  found = find_network("torchvision:resnet18")
  np.testing.assert_array_equal(found.tensors["conv1.weight"], RESNET["conv1.weight"])
  assert server.paths() == [f"/{NAMED}"]
  place = tmp_path / "cache/weights/torchvision" / NAMED
  assert get_published("torchvision:resnet18") == place
  assert server.paths() == []  # it is there
  assert parts(tmp_path) == [NAMED]


def test_hub(server, tmp_path):
  put_on_hub(server, "timm/resnet18.a1_in1k", {"model.safetensors": WEIGHTS, "config.json": b"{}"})
  path = get_published("hf:timm/resnet18.a1_in1k")
  assert path == tmp_path / "cache/weights/hf/timm/resnet18.a1_in1k/main/model.safetensors"
  assert len(server.paths()) == 2
  assert get_published("hf:timm/resnet18.a1_in1k") == path
  assert server.paths() == []
  assert find_network("hf:timm/resnet18.a1_in1k").source.description.endswith("resnet18")


def test_hub_file_and_revision(server, tmp_path):
  put_on_hub(server, "me/nets", {"a/b.pth": WEIGHTS, "c.safetensors": WEIGHTS[:-1]}, "v%2F1")
  path = get_published("hf:me/nets/a/b.pth@v/1")
  assert path == tmp_path / "cache/weights/hf/me/nets/v%2F1/a/b.pth"
  assert path.read_bytes() == WEIGHTS
  with pytest.raises(InputError, match=r"no d\.pth; it has a/b\.pth, c\.safetensors; name one: hf"):
    get_published("hf:me/nets/d.pth@v/1")
  with pytest.raises(InputError, match=r"no model\.safetensors or pytorch_model\.bin; it has a/b"):
    get_published("hf:me/nets@v/1")


def test_hub_takes_safetensors_before_pickles_and_a_single_file(server, tmp_path):
  save_pth(RESNET, tmp_path / "net.pth")
  pickled = (tmp_path / "net.pth").read_bytes()
  put_on_hub(server, "a/both", {"pytorch_model.bin": pickled, "model.safetensors": WEIGHTS})
  put_on_hub(server, "a/old", {"pytorch_model.bin": pickled, "other.pth": WEIGHTS})
  put_on_hub(server, "a/one", {"epoch=3.pth": pickled, "README.md": b""})
  put_on_hub(server, "a/none", {"README.md": b""})
  for name, file in (("both", "model.safetensors"), ("old", "pytorch_model.bin")):
    assert get_published(f"hf:a/{name}").name == file
    assert find_network(f"hf:a/{name}").source.description.endswith("resnet18")
  assert find_network("hf:a/old").source.description.endswith("resnet18")
  with pytest.raises(InputError, match="has no file of weights"):
    get_published("hf:a/none")
  server.files["/a/one/resolve/main/epoch%3D3.pth"] = pickled
  assert get_published("hf:a/one").name == "epoch=3.pth"


def test_a_token_goes_to_the_hub_and_not_to_whom_it_points_to(server, monkeypatch):
  monkeypatch.setenv("HF_TOKEN", "hf_secret")
  put_on_hub(server, "me/private", {"model.safetensors": WEIGHTS})
  server.files["/me/private/resolve/main/model.safetensors"] = (302, {"Location": "/far"}, b"")
  server.files["/far"] = WEIGHTS
  get_published("hf:me/private")
  tokens = {path: headers.get("Authorization") for path, headers in server.seen}
  assert tokens.pop("/far") is None
  assert set(tokens.values()) == {"Bearer hf_secret"}


@pytest.mark.parametrize(
  ("source", "message"),
  [
    ("torchvision:resnet5", "did you mean torchvision:resnet50"),
    ("torchvision:zzz", "there are alexnet, vgg16"),
    ("torchvision:", "no weights of that name"),
    ("hf:resnet50", "hf:OWNER/NAME"),
    ("hf:a/../b", "hf:OWNER/NAME"),
    ("hf:a/b//etc/passwd", "hf:OWNER/NAME"),
    ("hf:a/b@", "hf:OWNER/NAME"),
    ("hf:", "hf:OWNER/NAME"),
  ],
)
def test_a_wrong_name_is_refused_before_the_network_is_used(server, source, message):
  with pytest.raises(InputError, match=message):
    get_published(source)
  config = configs.default("unet")
  config.init_from = source
  with pytest.raises(InputError, match=message):
    configs.validate(config)
  assert server.paths() == []


def test_a_wrong_checksum_leaves_nothing_behind(server, tmp_path):
  server.files[f"/{NAMED}"] = WEIGHTS[:-1] + b"x"
  with pytest.raises(InputError, match=f"SHA-256 .* with {DIGITS[:8]}; what http.* sent isn't"):
    get_published("torchvision:resnet18")
  assert parts(tmp_path) == []


def test_a_kept_file_is_checked_too(server, tmp_path):
  place = tmp_path / "cache/weights/torchvision" / NAMED
  place.parent.mkdir(parents=True)
  place.write_bytes(WEIGHTS[:100])
  with pytest.raises(InputError, match=re.escape(f"remove {place} to download it anew")):
    get_published("torchvision:resnet18")


def test_an_interrupted_download_leaves_nothing_behind(server, tmp_path):
  server.files[f"/{NAMED}"] = (200, {"Content-Length": str(len(WEIGHTS) + 7)}, WEIGHTS)
  with pytest.raises(InputError, match="ended 7 bytes early; nothing of it was kept; try again"):
    get_published("torchvision:resnet18")
  assert parts(tmp_path) == []


@pytest.mark.parametrize(
  ("status", "message"),
  [(404, "no such file"), (403, "set HF_TOKEN"), (401, "wants a login"), (503, "answered 503")],
)
def test_answers_of_the_server_are_told(server, tmp_path, status, message):
  server.files[f"/{NAMED}"] = status
  with pytest.raises(InputError, match=message):
    get_published("torchvision:resnet18")
  server.files["/api/models/a/b/tree/main?recursive=true"] = status
  with pytest.raises(InputError, match=message):
    get_published("hf:a/b")
  assert parts(tmp_path) == []


def test_without_a_network_it_says_where_to_put_the_file(server, tmp_path, monkeypatch):
  monkeypatch.setattr(published, "TORCHVISION", "http://127.0.0.1:1/")
  monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
  place = tmp_path / "cache/weights/torchvision" / NAMED
  with pytest.raises(InputError, match=re.escape(f"get http://127.0.0.1:1/{NAMED} elsewhere and")):
    get_published("torchvision:resnet18")
  place.write_bytes(WEIGHTS)
  assert get_published("torchvision:resnet18") == place

  place = tmp_path / "cache/weights/hf/a/b/main/model.safetensors"
  with pytest.raises(InputError, match=re.escape(f"put it at {place}")):
    get_published("hf:a/b")
  place.parent.mkdir(parents=True)
  place.write_bytes(WEIGHTS)
  assert get_published("hf:a/b") == place


def test_a_full_disk(server, tmp_path, monkeypatch):
  def full(descriptor):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

  monkeypatch.setattr(os, "fsync", full)
  with pytest.raises(InputError, match=r"No space left on device.; make room, or set JSEG_CACHE"):
    get_published("torchvision:resnet18")
  assert parts(tmp_path) == []


def test_a_silent_server(server, monkeypatch):
  monkeypatch.setattr(download, "_TIMEOUT", 0.2)
  monkeypatch.setitem(server.files, f"/{NAMED}", (200, {"Content-Length": "9"}, b""))
  wait = threading.Event()
  monkeypatch.setattr(http.server.BaseHTTPRequestHandler, "end_headers", lambda _: wait.wait(9))
  with pytest.raises(InputError, match=r"timed out|no answer for 0\.2 s"):
    get_published("torchvision:resnet18")
  wait.set()


def test_what_isnt_the_hub(server, monkeypatch):
  server.files["/api/models/a/b/tree/main?recursive=true"] = b"<html>log in</html>"
  with pytest.raises(InputError, match="isn't the Hugging Face Hub"):
    get_published("hf:a/b")
  monkeypatch.setenv("HF_ENDPOINT", "nowhere")
  with pytest.raises(InputError, match="no address"):
    get_published("hf:a/b")


def test_parts_of_killed_downloads_are_removed(server, tmp_path):
  folder = tmp_path / "cache/weights/torchvision"
  folder.mkdir(parents=True)
  old, new = folder / f"{NAMED}.abc.part", folder / f"{NAMED}.def.part"
  for part in (old, new):
    part.write_bytes(b"1")
  os.utime(old, (0, time.time() - 90_000))
  get_published("torchvision:resnet18")
  assert sorted(parts(tmp_path)) == sorted([NAMED, new.name])


def test_no_home(server, monkeypatch):
  monkeypatch.setenv("JSEG_CACHE", "~nobody_of_that_name/cache")
  with pytest.raises(InputError, match="set JSEG_CACHE"):
    get_published("torchvision:resnet18")


def test_the_command(server, tmp_path, capsys):
  out = str(tmp_path / "run")
  with pytest.raises(SystemExit) as ended:
    main(["import-weights", "torchvision:resnet18", "--out", out])
  assert "torchvision:resnet18 is torchvision's or timm's resnet18" in str(ended.value)
  assert "name the network" in str(ended.value)
