from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache

from steermoe.config import Llm
from steermoe.models.generation import answer_texts, decode
from steermoe.models.llm import decoder_layers, hidden_states, load_llm, logits
from steermoe.models.packing import pack

PROMPTS = ["the cat sings", "please transcribe the audio: one two three two one", "red"]


def section(path: Path, dtype: str = "float32", layers: str | int = "all") -> Llm:
    values = {"path": str(path), "revision": None, "dtype": dtype, "quantization": "none", "layers": layers}
    return Llm.model_validate(values)


@pytest.fixture(params=["tiny_llm_dir", "tiny_llama_dir"])
def folder(request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue(request.param)


@torch.no_grad()
def by_hand(llm: Any, embeddings: torch.Tensor, stops: list[int], limit: int) -> list[int]:
    """Greedy decoding of one row without cache, padding or generate()."""
    answer: list[int] = []
    while len(answer) < limit:
        token = int(llm(inputs_embeds=embeddings[None]).logits[0, -1].argmax())
        if token in stops:
            break
        answer.append(token)
        embeddings = torch.cat([embeddings, llm.get_input_embeddings()(torch.tensor([token]))])
    return answer


def test_decoding_is_plain_greedy_whatever_the_generation_config_says(folder: Path, greedy: Any) -> None:
    llm, _ = load_llm(section(folder))
    torch.manual_seed(0)
    rows = [torch.randn(length, 32) for length in (3, 17, 1, 8)]
    padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    embeddings, valid = pack([padded], [torch.tensor([len(row) for row in rows])], "left")
    # Stop tokens that these rows really meet, one of them in mid-answer.
    free = by_hand(llm, rows[1], [], 12)
    stops = sorted({*llm.generation_config.eos_token_id, free[5]})
    llm.generation_config.eos_token_id = stops
    free_of_guards = greedy(12, max_repeats=None)
    answers = decode(llm, embeddings, valid, free_of_guards)
    assert answers == [by_hand(llm, row, stops, 12) for row in rows]
    assert len(answers[1]) < 12
    assert answers == decode(llm, embeddings, valid, free_of_guards)


def test_the_stored_generation_config_would_have_sampled(folder: Path) -> None:
    stored = AutoModelForCausalLM.from_pretrained(folder).generation_config
    assert stored.do_sample and stored.repetition_penalty == 1.3


def test_texts_are_answered_as_one_by_one(folder: Path, greedy: Any) -> None:
    llm, tokenizer = load_llm(section(folder))
    prompts = [tokenizer(prompt)["input_ids"] for prompt in PROMPTS]
    answers = answer_texts(llm, tokenizer, prompts, greedy(8), seed=0)
    table = llm.get_input_embeddings()
    stops = llm.generation_config.eos_token_id
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        ids = by_hand(llm, table(torch.tensor(tokenizer(prompt)["input_ids"])), stops, 8)
        assert answer == tokenizer.decode(ids, skip_special_tokens=True).strip()


@torch.no_grad()
def test_hidden_states_of_right_padded_rows_need_no_mask(folder: Path) -> None:
    llm, _ = load_llm(section(folder))
    rows = torch.randn(2, 9, 32)
    mask = torch.ones(2, 9, dtype=torch.long)
    mask[0, 4:] = 0
    masked = llm(inputs_embeds=rows, attention_mask=mask).logits
    ours = logits(llm, hidden_states(llm, rows))
    torch.testing.assert_close(ours[0, :4], masked[0, :4])
    torch.testing.assert_close(ours[1], masked[1])


def test_it_is_frozen_and_its_text_logits_are_the_untouched_models(folder: Path) -> None:
    llm, tokenizer = load_llm(section(folder))
    assert not any(p.requires_grad for p in llm.parameters())
    assert not any(module.training for module in llm.modules())
    ids = torch.tensor([tokenizer(PROMPTS[1])["input_ids"]])
    with torch.no_grad():
        untouched = AutoModelForCausalLM.from_pretrained(folder)(input_ids=ids).logits
        assert torch.equal(llm(input_ids=ids).logits, untouched)


def test_a_tokenizer_without_an_end_token_is_refused(tmp_path: Path, tiny_llm_dir: Path) -> None:
    AutoModelForCausalLM.from_pretrained(tiny_llm_dir).save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tiny_llm_dir)
    tokenizer.eos_token = None
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="has no eos_token"):
        load_llm(section(tmp_path))


@pytest.mark.parametrize("what", ["tokens", "end", "padding"])
def test_tokens_beyond_the_embedding_table_are_refused(what: str, tmp_path: Path, tiny_llm_dir: Path) -> None:
    llm = AutoModelForCausalLM.from_pretrained(tiny_llm_dir)
    tokenizer = AutoTokenizer.from_pretrained(tiny_llm_dir)
    rows = llm.config.vocab_size
    if what == "end":
        llm.generation_config.eos_token_id = [0, rows]
    else:
        tokenizer.add_tokens([f"<extra {n}>" for n in range(3)])
    if what == "padding":
        tokenizer.pad_token = "<extra 2>"
    llm.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=rf"llm\.path.*{len(tokenizer)} tokens.*{rows} rows"):
        load_llm(section(tmp_path))
    llm.resize_token_embeddings(rows + 64)  # a table that is larger than the vocabulary is fine
    llm.save_pretrained(tmp_path)
    assert len(load_llm(section(tmp_path))[1]) == len(tokenizer)


def test_layers_are_not_their_experts(save_tiny_llm: Any, tmp_path: Path) -> None:
    sizes = {"num_experts": 8, "moe_intermediate_size": 8, "shared_expert_intermediate_size": 8}
    llm, _ = load_llm(section(save_tiny_llm(tmp_path, "qwen2_moe", **sizes)))
    assert decoder_layers(llm) == list(llm.model.layers)
    for layer in llm.model.layers:  # as of architectures whose experts are a list
        layer.mlp.experts = torch.nn.ModuleList(torch.nn.Linear(2, 2) for _ in range(8))
    assert decoder_layers(llm) == list(llm.model.layers)


def test_pickled_weights_are_refused(tmp_path: Path, tiny_llm_dir: Path) -> None:
    llm = AutoModelForCausalLM.from_pretrained(tiny_llm_dir)
    llm.config.save_pretrained(tmp_path)
    torch.save(llm.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"llm\.path: found .* safetensors"):
        load_llm(section(tmp_path))


@torch.no_grad()
@pytest.mark.parametrize("depth", [1, 2])
def test_first_layers_are_those_of_the_whole(folder: Path, depth: int) -> None:
    llm, tokenizer = load_llm(section(folder, layers=depth))
    whole = AutoModelForCausalLM.from_pretrained(folder)
    ids = tokenizer(PROMPTS[1], return_tensors="pt").input_ids
    states = whole.base_model(input_ids=ids, output_hidden_states=True).hidden_states
    norm = whole.base_model.get_submodule("norm")
    expected = states[depth] if depth == 2 else norm(states[depth])
    assert torch.equal(hidden_states(llm, llm.get_input_embeddings()(ids)), expected)
    assert llm.config.num_hidden_layers == depth == len(DynamicCache(config=llm.config).layers)
    cached, plain = (
        llm.generate(ids, max_new_tokens=6, do_sample=False, use_cache=use) for use in (True, False)
    )
    assert torch.equal(cached, plain)


def test_more_layers_than_there_are(tiny_llm_dir: Path) -> None:
    with pytest.raises(ValueError, match=r"llm\.layers: found 3, the model has 2; legal: all, or 1 to 2"):
        load_llm(section(tiny_llm_dir, layers=3))
