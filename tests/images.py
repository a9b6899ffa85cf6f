"""Signed model images made by hand, byte by byte, so that a test can make any part of one wrong."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from intaglio import strictjson
from intaglio.content.descriptor import MANIFEST_TYPE, TITLE, Descriptor
from intaglio.content.layout import Store
from intaglio.content.modelpack import CONFIG_TYPE, FILEPATH, METADATA, MODEL_TYPE, layer_metadata
from intaglio.content.tree import File, Tree
from intaglio.digest import Digest
from intaglio.policy.document import Policy, default_policy, parse
from intaglio.strictjson import Object
from intaglio.trust.cosign import Referrer, bundle_referrer, lineage_referrer, signature_referrers
from intaglio.trust.key import PrivateKey
from intaglio.trust.signature import sign_bundle
from intaglio.trust.statement import (
    ASSEMBLE,
    BUILD_TYPES,
    PROVENANCE,
    TEST_RESULT,
    Dependency,
    evaluation_statement,
    provenance,
)

NAME = "examples/demo"
KEYS = Path(__file__).parent / "vectors" / "trust"


def key(name: str) -> PrivateKey:
    """Return one of the fixed keys that the golden vectors were made with: builder, release, evaluator, stranger."""
    return PrivateKey.load((KEYS / f"{name}.key").read_bytes())


def safetensors(
    tensors: Mapping[str, tuple[str, list[int], bytes]], metadata: Mapping[str, str] | None = None
) -> bytes:
    """Return a safetensors file."""
    header: Object = {"__metadata__": dict(metadata)} if metadata else {}
    body = b""
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(body), len(body) + len(data)]}
        body += data
    return raw_safetensors(json.dumps(header).encode(), body)


def raw_safetensors(header: bytes, body: bytes) -> bytes:
    """Return a file with that header, right or wrong."""
    header += b" " * (-len(header) % 8)
    return struct.pack("<Q", len(header)) + header + body


@dataclass
class Gguf:
    """A GGUF file in the making; every number of it can be made wrong."""

    pairs: list[bytes] = field(default_factory=lambda: [gguf_pair("general.architecture", 8, gguf_string("llama"))])
    tensors: list[tuple[str, list[int], int, int]] = field(
        default_factory=lambda: [("w", [32, 2], 8, 0), ("b", [8], 0, 96)]
    )
    """(name, shape, type, offset)."""
    data: bytes = b"\x11" * 68 + bytes(28) + b"\x22" * 32
    magic: bytes = b"GGUF"
    version: int = 3
    tensor_count: int | None = None
    pair_count: int | None = None
    alignment: int = 32

    def write(self) -> bytes:
        counts = (len(self.tensors) if self.tensor_count is None else self.tensor_count,
                  len(self.pairs) if self.pair_count is None else self.pair_count)  # fmt: skip
        out = self.magic + struct.pack("<IQQ", self.version, *counts) + b"".join(self.pairs)
        for name, shape, kind, offset in self.tensors:
            out += gguf_string(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)
        return out + bytes(-len(out) % self.alignment) + self.data


def gguf_string(text: str | bytes) -> bytes:
    data = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(data)) + data


def gguf_pair(name: str | bytes, kind: int, value: bytes) -> bytes:
    return gguf_string(name) + struct.pack("<I", kind) + value


def model_files() -> dict[str, bytes]:
    """Return a small model of every format."""
    return {
        "LICENSE": b"Apache-2.0\n",
        "config.json": b'{"architectures":["LlamaForCausalLM"],"model_type":"llama"}',
        "model.gguf": Gguf().write(),
        "model.safetensors": safetensors({"a": ("F32", [2, 3], b"\1" * 24), "b": ("BF16", [4], b"\2" * 8)}),
        "sub/tokenizer_config.json": b'{"model_max_length":1000000000000000019884624838656}',
    }


@dataclass
class Draft:
    """An image in the making: change what should be wrong, then ``sign`` and ``write`` it."""

    files: dict[str, bytes] = field(default_factory=model_files)
    builder: PrivateKey = field(default_factory=lambda: key("builder"))
    release: PrivateKey = field(default_factory=lambda: key("release"))
    config: Object = field(default_factory=dict)
    document: Object = field(default_factory=dict)
    manifest: bytes = b""
    """The image's manifest as it will be written; made from ``document`` by :meth:`seal`."""
    claims: list[bytes] = field(default_factory=list)
    assembly: bytes = b""
    referrers: list[Referrer] = field(default_factory=list)
    policy: Policy | None = None

    def __post_init__(self) -> None:
        self.lay_out()

    @property
    def entries(self) -> tuple[File, ...]:
        return Tree.of(File(path, Digest.of(data), len(data)) for path, data in self.files.items()).files

    @property
    def tree(self) -> Digest:
        return Tree.of(self.entries).digest

    @property
    def image(self) -> Descriptor:
        return Descriptor(MANIFEST_TYPE, Digest.of(self.manifest), len(self.manifest))

    def lay_out(self) -> Draft:
        """Make config and manifest anew from the files."""
        self.config = {
            "descriptor": {"name": NAME, "version": "1.0.0", "licenses": ["Apache-2.0"]},
            "config": {"format": "gguf"},
            "modelfs": {"type": "layers", "diffIds": [str(file.digest) for file in self.entries]},
        }
        self.document = {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "artifactType": MODEL_TYPE,
            "config": {},
            "layers": [layer(file) for file in self.entries],
        }
        return self

    def seal(self) -> Draft:
        """Fix the manifest's bytes, the config's digest in it."""
        config = strictjson.canonical(self.config)
        self.document["config"] = Descriptor(CONFIG_TYPE, Digest.of(config), len(config)).to_json()
        self.manifest = strictjson.canonical(self.document)
        return self

    def sign(self) -> Draft:
        """Make claims, lineage and the release signatures over the sealed manifest."""
        if not self.manifest:
            self.seal()
        base, tuned = Digest.of(b"base"), Digest.of(b"tuned")
        self.claims = self.claims or [
            claim(self.builder, "import", base, [origin("pypi:base==1.0"), part("program"), part("toolchain")]),
            claim(self.builder, "finetune", tuned, [output("base", base), origin("file:data.jsonl"), part("program")]),
            claim(self.builder, "convert", self.tree, [output("model", tuned), part("program"), part("toolchain")]),
        ]
        self.assembly = self.assembly or claim(
            self.builder, "assemble", self.image.digest, [output("model", self.tree)], sandbox="builtin"
        )
        self.refer()
        return self

    def refer(self) -> None:
        """Make the referrers anew from claims, assembly and the sealed manifest."""
        files = [(file.path, file.digest) for file in self.entries]
        self.referrers = [
            *signature_referrers(self.image, NAME, files, self.release),
            bundle_referrer(self.image, self.assembly, PROVENANCE),
            lineage_referrer(self.image, self.claims),
        ]

    def measure(self) -> Draft:
        """Let the evaluator say what was measured of the signed image."""
        statement = evaluation_statement(
            self.image.digest,
            configuration=[("program:evaluate", Digest.of(b"evaluate"))],
            metrics={"qa.acc": 0.5},
            gates={"qa.acc": {"minimum": 0.25}},
            samples=8,
        )
        bundle = sign_bundle(statement.payload(), key("evaluator"))
        self.referrers.append(bundle_referrer(self.image, bundle, TEST_RESULT))
        return self

    def replace_referrer(self, place: int, change: Callable[[Object], None]) -> None:
        """Change the manifest of one referrer; its blobs stay."""
        document = strictjson.parse_object(self.referrers[place].manifest, what="referrer")
        change(document)
        self.referrers[place] = Referrer(strictjson.canonical(document), self.referrers[place].blobs)

    def blobs(self) -> dict[Digest, bytes]:
        """Return every blob of the image and its referrers."""
        found = [self.manifest, strictjson.canonical(self.config), *self.files.values()]
        for referrer in self.referrers:
            found += [referrer.manifest, *referrer.blobs]
        return {Digest.of(blob): blob for blob in found}

    def write(self, folder: Path) -> Digest:
        """Write the image as an OCI layout and return its digest."""
        place = folder / "blobs" / "sha256"
        place.mkdir(parents=True)
        for digest, blob in self.blobs().items():
            (place / digest.hex).write_bytes(blob)
        entries = [self.image, *(Descriptor(MANIFEST_TYPE, one.digest, len(one.manifest)) for one in self.referrers)]
        index: Object = {"schemaVersion": 2, "manifests": [entry.to_json() for entry in entries]}
        (folder / "index.json").write_bytes(strictjson.canonical(index))
        (folder / "oci-layout").write_bytes(b'{"imageLayoutVersion":"1.0.0"}')
        return self.image.digest

    def store(self, root: Path) -> Store:
        """Put the image into a store and return it."""
        store = Store.open(root)
        for blob in self.blobs().values():
            store.put(blob)
        for referrer in self.referrers:
            store.put_referrer(referrer.manifest, referrer.blobs)
        return store


def policy(text: str | None = None) -> Policy:
    """Return the default policy over the fixed keys, or the one written."""
    return parse((text or policy_text()).encode())


def policy_text() -> str:
    return default_policy(*(key(name).public.pem for name in ("builder", "release", "evaluator")))


def layer(file: File) -> Object:
    metadata = strictjson.canonical(layer_metadata(file)).decode()
    marks = {FILEPATH: file.path, TITLE: file.path, METADATA: metadata}
    kind = "application/vnd.cncf.model.weight.v1.raw"
    return Descriptor(kind, file.digest, file.size, annotations=marks).to_json()


def claim(
    builder: PrivateKey,
    step: str,
    subject: Digest,
    dependencies: Iterable[Dependency],
    *,
    sandbox: str = "bubblewrap",
) -> bytes:
    """Return one signed claim."""
    payload = provenance(
        subject=subject,
        build_type=ASSEMBLE if step == "assemble" else f"{BUILD_TYPES}{step}/v1",
        external={"recipe": f"{NAME}@1.0.0", "step": step},
        internal={"action": str(Digest.of(step.encode())), "sandbox": sandbox},
        dependencies=[one.to_json() for one in dependencies],
    )
    return sign_bundle(payload, builder)


def origin(uri: str) -> Dependency:
    return Dependency("input:origin", Digest.of(uri.encode()), "origin", uri)


def output(name: str, digest: Digest) -> Dependency:
    return Dependency(f"input:{name}", digest, "output")


def part(kind: str) -> Dependency:
    return Dependency(kind, Digest.of(kind.encode()), kind)
