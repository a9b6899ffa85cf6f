"""Manifests, configs, files and blobs: confused, malformed, altered, missing, and holding what no model may hold."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path

from tests.attacks.corpus import Corpus
from tests.images import Draft, Gguf, model_files, raw_safetensors

from intaglio import strictjson
from intaglio.digest import Digest
from intaglio.errors import ExitCode
from intaglio.strictjson import Object

CASES = Corpus()
case = CASES.case
C, P, N = ExitCode.CORRUPT, ExitCode.POLICY, ExitCode.NOT_VERIFIABLE
UNREADABLE = ("content", "manifest", "formats", "model-signing", "provenance")


def with_document(folder: Path, change: Callable[[Object], object]) -> Digest:
    """Write the image with its manifest changed, and everything signed over what came out."""
    draft = Draft().seal()
    change(draft.document)
    draft.manifest = strictjson.canonical(draft.document)
    return draft.sign().write(folder)


def with_manifest(folder: Path, change: Callable[[bytes], bytes]) -> Digest:
    draft = Draft().seal()
    draft.manifest = change(draft.manifest)
    return draft.sign().write(folder)


def with_config(folder: Path, change: Callable[[Object], object]) -> Digest:
    draft = Draft()
    change(draft.config)
    return draft.seal().sign().write(folder)


def with_files(folder: Path, files: dict[str, bytes]) -> Digest:
    """Write the image with other files in it, well signed."""
    return Draft(files=model_files() | files).sign().write(folder)


def blob(folder: Path, data: bytes) -> Path:
    return folder / "blobs" / "sha256" / Digest.of(data).hex


def paths(document: Object, old: str, new: str) -> None:
    """Rename a file in the manifest, consistently."""
    for layer in document["layers"]:
        marks = layer["annotations"]
        if marks["org.cncf.model.filepath"] == old:
            marks["org.cncf.model.filepath"] = marks["org.opencontainers.image.title"] = new
            name = new.rpartition("/")[2]
            metadata = strictjson.parse_object(marks["org.cncf.model.file.metadata+json"].encode(), what="metadata")
            marks["org.cncf.model.file.metadata+json"] = strictjson.canonical(metadata | {"name": name}).decode()


# --- the manifest -----------------------------------------------------------------------------------------------------


@case(C, *UNREADABLE)
def manifests_and_layers_at_once(folder: Path) -> Digest:
    return with_document(folder, lambda d: d.update(manifests=[]))


@case(C, *UNREADABLE)
def an_index_that_says_it_is_a_manifest(folder: Path) -> Digest:
    return with_document(folder, lambda d: d.update(mediaType="application/vnd.oci.image.index.v1+json"))


@case(C, *UNREADABLE)
def a_digest_of_another_algorithm(folder: Path) -> Digest:
    return with_document(folder, lambda d: d["layers"][0].update(digest="sha512:" + "a" * 128))


@case(C, *UNREADABLE)
def a_digest_in_upper_case(folder: Path) -> Digest:
    return with_document(folder, lambda d: d["layers"][0].update(digest=d["layers"][0]["digest"].upper()))


@case(C, *UNREADABLE)
def a_digest_too_short(folder: Path) -> Digest:
    return with_document(folder, lambda d: d["layers"][0].update(digest=d["layers"][0]["digest"][:-1]))


@case(C, *UNREADABLE)
def duplicate_keys_in_the_manifest(folder: Path) -> Digest:
    return with_manifest(folder, lambda good: good[:-1] + b',"layers":[]}')


@case(C, *UNREADABLE)
def a_manifest_that_is_no_json(folder: Path) -> Digest:
    return with_manifest(folder, lambda good: good[:-1])


@case(C, *UNREADABLE)
def a_path_out_of_the_folder(folder: Path) -> Digest:
    return with_document(folder, lambda d: paths(d, "LICENSE", "../LICENSE"))


@case(C, *UNREADABLE)
def an_absolute_path(folder: Path) -> Digest:
    return with_document(folder, lambda d: paths(d, "LICENSE", "/etc/passwd"))


@case(C, *UNREADABLE)
def a_path_with_a_control_character(folder: Path) -> Digest:
    return with_document(folder, lambda d: paths(d, "LICENSE", "LICENSE\r"))


@case(C, *UNREADABLE)
def two_paths_that_are_one_in_another_case(folder: Path) -> Digest:
    return with_document(folder, lambda d: paths(d, "LICENSE", "CONFIG.JSON"))


@case(C, *UNREADABLE)
def a_file_where_a_folder_is(folder: Path) -> Digest:
    return with_document(folder, lambda d: paths(d, "LICENSE", "sub"))


@case(C, *UNREADABLE)
def a_layer_that_would_be_unpacked(folder: Path) -> Digest:
    kind = "application/vnd.cncf.model.weight.v1.tar"
    return with_document(folder, lambda d: d["layers"][0].update(mediaType=kind))


@case(C, *UNREADABLE)
def claims_of_safety_in_annotations(folder: Path) -> Digest:
    return with_document(folder, lambda d: d.update(annotations={"org.cncf.ai.security.scanned": "true"}))


@case(C, "content", "formats")
def a_layer_whose_size_lies(folder: Path) -> Digest:
    def change(document: Object) -> None:
        layer = document["layers"][0]
        layer["size"] += 1
        marks = layer["annotations"]
        metadata = strictjson.parse_object(marks["org.cncf.model.file.metadata+json"].encode(), what="metadata")
        longer = strictjson.canonical(metadata | {"size": layer["size"]})
        marks["org.cncf.model.file.metadata+json"] = longer.decode()

    return with_document(folder, change)


# --- the config -------------------------------------------------------------------------------------------------------


@case(C, *UNREADABLE)
def diff_ids_of_other_layers(folder: Path) -> Digest:
    return with_config(folder, lambda c: c["modelfs"]["diffIds"].reverse())


@case(C, *UNREADABLE)
def an_empty_config(folder: Path) -> Digest:
    return with_config(folder, lambda c: c.clear())


@case(C, *UNREADABLE)
def a_config_with_a_key_of_its_own(folder: Path) -> Digest:
    return with_config(folder, lambda c: c["descriptor"].update(verified=True))


@case(C, *UNREADABLE)
def a_config_whose_size_lies(folder: Path) -> Digest:
    return with_document(folder, lambda d: d["config"].update(size=d["config"]["size"] + 1))


# --- blobs ------------------------------------------------------------------------------------------------------------


@case(C, "content", "formats")
def a_bit_flipped_in_the_weights(folder: Path) -> Digest:
    draft = Draft().sign()
    digest = draft.write(folder)
    data = bytearray(draft.files["model.gguf"])
    data[-1] ^= 1
    blob(folder, draft.files["model.gguf"]).write_bytes(data)
    return digest


@case(C, "content", "formats")
def weights_cut_short(folder: Path) -> Digest:
    draft = Draft().sign()
    digest = draft.write(folder)
    blob(folder, draft.files["model.gguf"]).write_bytes(draft.files["model.gguf"][:-1])
    return digest


@case(C, "content", "formats")
def weights_with_something_behind(folder: Path) -> Digest:
    draft = Draft().sign()
    digest = draft.write(folder)
    blob(folder, draft.files["model.gguf"]).write_bytes(draft.files["model.gguf"] + b"\0")
    return digest


@case(C, "content", "formats")
def a_missing_file(folder: Path) -> Digest:
    draft = Draft().sign()
    digest = draft.write(folder)
    blob(folder, draft.files["LICENSE"]).unlink()
    return digest


@case(C, "content", "formats")
def a_blob_that_is_a_link(folder: Path) -> Digest:
    draft = Draft().sign()
    digest = draft.write(folder)
    place = blob(folder, draft.files["LICENSE"])
    (folder / "elsewhere").write_bytes(place.read_bytes())
    place.unlink()
    place.symlink_to(folder / "elsewhere")
    return digest


@case(C, "content", "formats")
def a_blob_that_is_a_pipe(folder: Path) -> Digest:
    draft = Draft().sign()
    digest = draft.write(folder)
    place = blob(folder, draft.files["LICENSE"])
    place.unlink()
    os.mkfifo(place)
    return digest


@case(C, *UNREADABLE)
def a_bit_flipped_in_the_config(folder: Path) -> Digest:
    draft = Draft().sign()
    digest = draft.write(folder)
    config = strictjson.canonical(draft.config)
    blob(folder, config).write_bytes(config.replace(b"Apache", b"apache"))
    return digest


@case(C, "content", "signature")
def a_bit_flipped_in_a_signature(folder: Path) -> Digest:
    draft = Draft().sign()
    digest = draft.write(folder)
    bundle = draft.referrers[0].blobs[1]
    blob(folder, bundle).write_bytes(bundle.replace(b"hint", b"hinu"))
    return digest


@case(C)
def a_bit_flipped_in_the_manifest(folder: Path) -> Digest:
    draft = Draft().sign()
    digest = draft.write(folder)
    blob(folder, draft.manifest).write_bytes(draft.manifest.replace(b"LICENSE", b"LICENCE"))
    return digest


@case(C, "content", "signature", "cosign", "model-signing", "provenance", "lineage", "sandbox")
def a_referrer_that_is_missing(folder: Path) -> Digest:
    draft = Draft().sign()
    digest = draft.write(folder)
    blob(folder, draft.referrers[0].manifest).unlink()
    return digest


# --- what a model may hold --------------------------------------------------------------------------------------------


@case(P, "formats")
def a_pickle(folder: Path) -> Digest:
    return with_files(folder, {"pytorch_model.bin": pickle.dumps({"a": 1})})


@case(P, "formats")
def a_pickle_that_looks_like_text(folder: Path) -> Digest:
    return with_files(folder, {"notes.txt": b"cos\nsystem\n(S'true'\ntR."})


@case(P, "formats")
def a_zip_named_safetensors(folder: Path) -> Digest:
    return with_files(folder, {"adapter.safetensors": b"PK\3\4" + bytes(60)})


@case(P, "formats")
def a_python_module(folder: Path) -> Digest:
    return with_files(folder, {"modeling_demo.py": b"print('loaded')\n"})


@case(P, "formats")
def an_empty_python_module(folder: Path) -> Digest:
    return with_files(folder, {"__init__.py": b""})


@case(P, "formats")
def a_hidden_file(folder: Path) -> Digest:
    return with_files(folder, {".gitattributes": b"* -text\n"})


@case(P, "formats")
def code_named_in_the_configuration(folder: Path) -> Digest:
    return with_files(folder, {"config.json": b'{"auto_map":{"AutoModel":"modeling_demo.Demo"}}'})


@case(P, "formats")
def a_kernel_from_a_hub(folder: Path) -> Digest:
    return with_files(folder, {"config.json": b'{"attn_implementation":"someone/kernels"}'})


@case(C, "formats")
def a_shard_outside_the_model(folder: Path) -> Digest:
    return with_files(folder, {"model.safetensors.index.json": b'{"weight_map":{"a":"../secret.safetensors"}}'})


@case(C, "formats")
def a_shard_that_is_not_there(folder: Path) -> Digest:
    return with_files(folder, {"model.safetensors.index.json": b'{"weight_map":{"a":"more.safetensors"}}'})


@case(C, "formats")
def tensors_that_overlap(folder: Path) -> Digest:
    entry = b'{"dtype":"U8","shape":[2],"data_offsets":[0,2]}'
    return with_files(folder, {"a.safetensors": raw_safetensors(b'{"a":%s,"b":%s}' % (entry, entry), b"\0\0")})


@case(C, "formats")
def a_tensor_past_the_end(folder: Path) -> Digest:
    return with_files(folder, {"a.gguf": Gguf(tensors=[("a", [1 << 40], 0, 0)]).write()})


@case(C, "formats")
def a_gguf_of_endless_keys(folder: Path) -> Digest:
    return with_files(folder, {"a.gguf": Gguf(pair_count=(1 << 64) - 1).write()})
