"""The sections of the corpora: which splits are used for what, where they are from, and what is made of them."""

import re
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field, ValidationInfo, field_validator

from steermoe.config.errors import illegal
from steermoe.config.model import Llm
from steermoe.config.section import Commit, Count, Names, Rows, Section, Seed, Text, checked

LANGUAGE_TAG = r"^[a-z]{2,3}(-[A-Za-z0-9]+)*$"  # BCP 47, in short
Protocol = Literal["raw", "clean", "unanimous", "binary", "single-word"]
FLEURS_LANGUAGES = tuple(
    "af_za am_et ar_eg as_in ast_es az_az be_by bg_bg bn_in bs_ba ca_es ceb_ph ckb_iq cmn_hans_cn cs_cz cy_gb "
    "da_dk de_de el_gr en_us es_419 et_ee fa_ir ff_sn fi_fi fil_ph fr_fr ga_ie gl_es gu_in ha_ng he_il hi_in "
    "hr_hr hu_hu hy_am id_id ig_ng is_is it_it ja_jp jv_id ka_ge kam_ke kea_cv kk_kz km_kh kn_in ko_kr ky_kg "
    "lb_lu lg_ug ln_cd lo_la lt_lt luo_ke lv_lv mi_nz mk_mk ml_in mn_mn mr_in ms_my mt_mt my_mm nb_no ne_np "
    "nl_nl nso_za ny_mw oc_fr om_et or_in pa_in pl_pl ps_af pt_br ro_ro ru_ru sd_in sk_sk sl_si sn_zw so_so "
    "sr_rs sv_se sw_ke ta_in te_in tg_tj th_th tr_tr uk_ua umb_ao ur_pk uz_uz vi_vn wo_sn xh_za yo_ng "
    "yue_hant_hk zu_za".split()
)
PROMPT_LANGUAGES = ("en", "es", "fr", "it", "ru")
MLS_LANGUAGES = ("english", "german", "dutch", "french", "spanish", "italian", "portuguese", "polish")
TERNARY = ("train", "dev", "test")


class Corpus(Section):
    """What every corpus has: which of its SPLITS are used for what."""

    SPLITS: ClassVar[tuple[str, ...]]
    train: Names
    dev: Names
    test: Names
    seed: Seed

    @property
    def used(self) -> list[str]:
        """The splits that are used."""
        return [*self.train, *self.dev, *self.test]

    @field_validator("train", "dev", "test")
    @classmethod
    def _own_and_apart(cls, names: list[str], info: ValidationInfo) -> list[str]:
        for name in names:
            if name not in cls.SPLITS:
                raise illegal(cls._near(name), found=name)
            for use, taken in info.data.items():
                if name in taken:
                    raise illegal(f"a split that is not in `{use}` too", found=name)
        return names

    @classmethod
    def _near(cls, name: str) -> tuple[str, ...]:
        """Return the legal splits to name where `name` is none."""
        return cls.SPLITS

    @classmethod
    def _rows_per_split(
        cls, rows: dict[str, int], info: ValidationInfo, others: dict[str, int] | None
    ) -> dict[str, int]:
        """Check `rows` of every split: none where it is not in use; some, with those of `others`, where it is."""
        if set(rows) != set(cls.SPLITS):
            raise illegal(f"a number of rows for each of {', '.join(cls.SPLITS)}")
        used = _used(info, cls.SPLITS)
        for name, count in rows.items():
            if name not in used and count:
                raise illegal(f"0 for `{name}`, which is not in train, dev or test", found={name: count})
            if name in used and others is not None and not count + others.get(name, 0):
                raise illegal(f"rows for `{name}`, which is in train, dev or test", found={name: count})
        return rows


def _used(info: ValidationInfo, otherwise: tuple[str, ...]) -> list[str]:
    """Return the splits in use, as far as `train`, `dev` and `test` are valid."""
    return [name for use in TERNARY for name in info.data.get(use, otherwise)]


def _one_for_each_used(values: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
    used = _used(info, ())
    if all(use in info.data for use in TERNARY) and set(values) != set(used):
        raise illegal(f"a value for each split in use: {', '.join(used) or 'none'}")
    return values


ForEachUsed = AfterValidator(_one_for_each_used)


class Synthetic(Corpus):
    """Corpus `synthetic`: espeak-ng speech."""

    SPLITS: ClassVar = ("train", "dev", "clean", "other")
    utterances: dict[str, Rows]
    questions: dict[str, Rows]
    noisy_share: Annotated[float, Field(ge=0, le=1)]

    @field_validator("utterances", "questions")
    @classmethod
    def _rows(cls, rows: dict[str, int], info: ValidationInfo) -> dict[str, int]:
        return cls._rows_per_split(rows, info, info.data.get("utterances"))


class Limited(Corpus):
    """A corpus of which a part may be taken: `limit` utterances of a split, chosen by a hash with the seed."""

    limit: dict[str, int] | None = Field(description="null, or a whole number >= 1 for some splits in use")

    @field_validator("limit", mode="plain")
    @classmethod
    def _of_used_splits(cls, limit: Any, info: ValidationInfo) -> Any:
        if limit is None:
            return limit
        if not isinstance(limit, dict) or not limit:
            raise illegal("null, or a whole number >= 1 for some splits in use")
        for name, count in limit.items():
            if name not in _used(info, cls.SPLITS):
                raise illegal(_used(info, cls.SPLITS), found=name)
            if type(count) is not int or count < 1:
                raise illegal("a whole number >= 1", found={name: count})
        return limit


class Neural(Limited):
    """Corpus `neural`: phrases spoken by neural voices.

    `utterances` of each split; `changed_share` of `train`, `train-piper` and `tune` has noise, reverberation, or the
    band of a telephone.
    """

    SPLITS: ClassVar = ("train", "train-piper", "dev", "clean", "noise", "reverb", "telephone", "tune")
    utterances: dict[str, Rows]
    changed_share: Annotated[float, Field(ge=0, le=1)]

    @field_validator("utterances")
    @classmethod
    def _rows(cls, rows: dict[str, int], info: ValidationInfo) -> dict[str, int]:
        return cls._rows_per_split(rows, info, {})


class Shapes(Corpus):
    """Corpus `shapes`: drawn videos with spoken questions; `videos` of each split."""

    SPLITS: ClassVar = TERNARY
    videos: dict[str, Rows]

    @field_validator("videos")
    @classmethod
    def _rows(cls, rows: dict[str, int], info: ValidationInfo) -> dict[str, int]:
        return cls._rows_per_split(rows, info, {})


class Remote(Corpus):
    """A corpus that is downloaded: from its official place, or from a mirror."""

    mirror: Text | None
    required: bool


class Digits(Remote):
    """Corpus `digits`: the Free Spoken Digit Dataset, joined into strings of digits."""

    SPLITS: ClassVar = ("train", "test", "unseen")
    strings: dict[str, Rows]
    max_digits: Count

    @field_validator("strings")
    @classmethod
    def _rows(cls, rows: dict[str, int], info: ValidationInfo) -> dict[str, int]:
        return cls._rows_per_split(rows, info, {})


class Archived(Remote, Limited):
    """A corpus that is downloaded, of which a part may be taken."""


class LibriSpeech(Archived):
    """Corpus `librispeech`."""

    SPLITS: ClassVar = (
        *("train-clean-100", "train-clean-360", "train-other-500"),
        *("dev-clean", "dev-other", "test-clean", "test-other"),
    )


class MiniLibriSpeech(Archived):
    """Corpus `minilibrispeech`."""

    SPLITS: ClassVar = ("train-clean-5", "dev-clean-2")


class Aishell1(Archived):
    """Corpus `aishell1`."""

    SPLITS: ClassVar = TERNARY


class Aishell2(Limited):
    """Corpus `aishell2`, which is given on application only: `mirror` is a folder."""

    SPLITS: ClassVar = (
        "train",
        *(f"{channel}-{split}" for channel in ("ios", "android", "mic") for split in ("dev", "test")),
    )
    mirror: Text


class _Multilingual(Archived):
    """A corpus whose splits are named by language: `german-test`."""

    LANGUAGES: ClassVar[tuple[str, ...]]

    @classmethod
    def _near(cls, name: str) -> tuple[str, ...]:
        language, _, split = name.rpartition("-")
        if language in cls.LANGUAGES:
            return tuple(f"{language}-{legal}" for legal in TERNARY)
        return tuple(f"{legal}-{split if split in TERNARY else 'test'}" for legal in cls.LANGUAGES)


class Fleurs(_Multilingual):
    """Corpus `fleurs`; `text` is the transcript as written, or FLEURS' own normalisation of it."""

    LANGUAGES: ClassVar = FLEURS_LANGUAGES
    SPLITS: ClassVar = tuple(f"{language}-{split}" for language in FLEURS_LANGUAGES for split in TERNARY)
    revision: Commit
    text: Literal["raw", "normalised"]


class Mls(_Multilingual):
    """Corpus `mls`, in one of its two encodings."""

    LANGUAGES: ClassVar = MLS_LANGUAGES
    SPLITS: ClassVar = tuple(f"{language}-{split}" for language in MLS_LANGUAGES for split in TERNARY)
    encoding: Literal["flac", "opus"]


class TelephonePrompts(_Multilingual):
    """Corpus `prompts`, shared out over its splits by a hash of the text with the seed."""

    LANGUAGES: ClassVar = PROMPT_LANGUAGES
    SPLITS: ClassVar = tuple(f"{language}-{split}" for language in PROMPT_LANGUAGES for split in TERNARY)


class SpokenQuestions(Limited):
    """Corpus `spokenquestions`: `questions` of each split, answered by `llm`, which is the profile's."""

    SPLITS: ClassVar = TERNARY
    questions: dict[str, Rows]
    llm: Llm

    @field_validator("questions")
    @classmethod
    def _rows(cls, rows: dict[str, int], info: ValidationInfo) -> dict[str, int]:
        return cls._rows_per_split(rows, info, {})

    @field_validator("llm")
    @classmethod
    def _whole(cls, llm: Llm) -> Llm:
        if (llm.quantization, llm.layers) != ("none", "all"):
            raise illegal("an LLM with quantization none and layers all", found=llm.model_dump())
        return llm


class Folder(Limited):
    """Corpus `folder`: the user's own recordings, with a table or a .txt next to each of them.

    `language` is that of the rows without one.
    """

    SPLITS: ClassVar = TERNARY
    path: Text
    language: Annotated[
        str,
        checked(
            "a BCP 47 tag; und where unknown",
            lambda tag: isinstance(tag, str) and re.fullmatch(LANGUAGE_TAG, tag) is not None,
        ),
    ]
    table: Text | None


class ClothoAqa(Archived):
    """Corpus `clothoaqa`; `protocol` says which questions of a split are rows."""

    SPLITS: ClassVar = ("train", "val", "test")
    protocol: Annotated[dict[str, Protocol], ForEachUsed]


class Clotho(Archived):
    """Corpus `clotho`; `captions` says whether each of a recording's five is a row, or the first alone."""

    SPLITS: ClassVar = ("development", "validation", "evaluation")
    captions: Annotated[dict[str, Literal["each", "first"]], ForEachUsed]


class Mmau(Archived):
    """Corpus `mmau`; `answer` is the letter of the right choice, or its text."""

    SPLITS: ClassVar = ("test-mini",)
    answer: Literal["letter", "text"]


class MmauPro(Archived):
    """Corpus `mmaupro`; `answer` as of `mmau`."""

    SPLITS: ClassVar = ("test",)
    revision: Commit
    answer: Literal["letter", "text"]


class OpenAudioBench(Archived):
    """Corpus `openaudiobench`."""

    SPLITS: ClassVar = ("llama_questions", "reasoning_qa", "trivia_qa", "web_questions")
    revision: Commit


# Their questions may be about sounds other than speech.
SOUNDS = frozenset({"clothoaqa", "clotho", "mmau", "mmaupro", "folder"})
LEFT_OUT: Any = None  # not a legal value, and not checked: a profile may lack a corpus


class Corpora(Section):
    """The settings of each corpus that a profile uses: the rows of CORPORA."""

    synthetic: Synthetic = LEFT_OUT
    digits: Digits = LEFT_OUT
    librispeech: LibriSpeech = LEFT_OUT
    minilibrispeech: MiniLibriSpeech = LEFT_OUT
    aishell1: Aishell1 = LEFT_OUT
    aishell2: Aishell2 = LEFT_OUT
    fleurs: Fleurs = LEFT_OUT
    mls: Mls = LEFT_OUT
    folder: Folder = LEFT_OUT
    clothoaqa: ClothoAqa = LEFT_OUT
    clotho: Clotho = LEFT_OUT
    mmau: Mmau = LEFT_OUT
    mmaupro: MmauPro = LEFT_OUT
    openaudiobench: OpenAudioBench = LEFT_OUT
    shapes: Shapes = LEFT_OUT
    neural: Neural = LEFT_OUT
    prompts: TelephonePrompts = LEFT_OUT
    spokenquestions: SpokenQuestions = LEFT_OUT

    def named(self) -> dict[str, Corpus]:
        """Return those that are not left out."""
        return {
            name: getattr(self, name) for name in type(self).model_fields if name in self.model_fields_set
        }
