"""Probes that the base writes itself: its answers to questions, read as they grow.

    question, in the chat template -> the base's answer t1 t2 t3 … -> a probe that ends behind t4, one behind t8, …

What a fine-tuned adapter changes, it changes while it answers. Short prompts are read where an answer begins; these are
read all along, and as each goes on from the one before, all of an answer share its one pass.
"""

import torch

from ..forward.base import BaseModel
from .finetune import prompt_of

TOP_P = 0.95


def write_answers(
    base: BaseModel, questions: list[str], answers: int = 2, tokens: int = 40, every: int = 4, seed: int = 0
) -> list[str]:  # fmt: skip
    """Probes for a `probe_file`: each question with an answer of the base so far, after every few of its first tokens.

    Answers are sampled at temperature 1 from the likeliest tokens of together TOP_P. A place where the text would be
    split otherwise than it was written is left out.
    """
    tokenizer, probes = base.tokenizer, []
    with torch.random.fork_rng(), torch.inference_mode():
        torch.manual_seed(seed)
        for question in questions:
            head = _without_bos(tokenizer, prompt_of(tokenizer, {"prompt": question.strip()}))
            ids = tokenizer(head)["input_ids"]
            for _ in range(answers):
                whole = _sample(base, ids, tokens)
                for end in range(len(ids), len(whole) + 1, every):
                    text = head + tokenizer.decode(whole[len(ids) : end])
                    if tokenizer(text)["input_ids"] == whole[:end]:
                        probes.append(text)
    return list(dict.fromkeys(probes))


def _sample(base: BaseModel, ids: list[int], tokens: int) -> list[int]:
    """The ids and what the base goes on with, without the token that ends an answer."""
    given = torch.tensor([ids], device=base.device)
    how = dict(do_sample=True, temperature=1.0, top_p=TOP_P, top_k=0, pad_token_id=base.tokenizer.eos_token_id)
    out = base.model.generate(given, attention_mask=torch.ones_like(given), max_new_tokens=tokens, **how)[0].tolist()
    return out[:-1] if out[-1] == base.tokenizer.eos_token_id else out


def _without_bos(tokenizer, text: str) -> str:
    """A chat template may write the token that the tokenizer puts in front by itself."""
    adds = tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]
    return text.removeprefix(tokenizer.bos_token) if adds and tokenizer.bos_token else text
