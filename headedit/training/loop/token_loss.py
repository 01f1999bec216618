"""The loss on labelled tokens, the same however a batch is split into parts.

Models differ in what they make of ``labels``: some divide by the tokens of their own part of the batch whatever
``num_items_in_batch`` says, some do not shift the labels, and some add the losses of their routers. Here the loss is
computed from the logits alone, as transformers' ``ForCausalLMLoss`` does.
"""

from typing import Any

from torch import Tensor, nn
from transformers import Trainer
from transformers.loss.loss_utils import ForCausalLMLoss

from headedit.data.batches import IGNORED
from headedit.data.losses import HeadInputs


def computes_no_loss(trainer: Trainer, *ours: type) -> bool:
    """Whether a Trainer leaves the loss to the model, so that ``token_loss`` can take its place.

    It does not where a class other than ``transformers.Trainer`` has a ``compute_loss`` of its own, as those of TRL
    have, where it is given a loss, or where a kernel makes the loss without logits.

    Args:
        trainer: the Trainer.
        ours: classes whose own ``compute_loss`` does not count.
    """
    own = [cls for cls in type(trainer).__mro__ if "compute_loss" in vars(cls) and cls not in (*ours, Trainer)]
    given = trainer.compute_loss_func is not None or trainer.label_smoother is not None
    return not (own or given or getattr(trainer.args, "use_liger_kernel", False) or trainer.args.n_gpu > 1)


def sums_token_losses(trainer: type) -> bool:
    """Whether a class of Trainers is TRL's ``SFTTrainer`` in a version that divides the losses of tokens itself.

    Whether the model does something with ``num_items_in_batch`` is then of no matter.
    """
    kinds = (base for base in trainer.__mro__ if base.__module__.startswith("trl.") and base.__name__ == "SFTTrainer")
    own: list[Any] = [vars(kind).get("compute_loss") for kind in kinds]
    return any("log_probs" in function.__code__.co_names for function in own if function is not None)


def choose_loss(trainer: Any, *ours: type) -> None:
    """Gives a Trainer ``token_loss`` where it leaves the loss to the model, and the count of tokens where it needs it.

    Args:
        trainer: the Trainer.
        ours: as in ``computes_no_loss``.
    """
    if computes_no_loss(trainer, *ours):
        trainer.compute_loss_func = token_loss
    if sums_token_losses(type(trainer)):
        trainer.model_accepts_loss_kwargs = True  # else types that do not take it are trained on a mean of means


def is_normalised(trainer: Any, num_items_in_batch: Tensor | int | None) -> bool:
    """Whether the loss of a part of a batch is a share of the whole batch's, and not a mean that is divided later."""
    said: bool | None = getattr(trainer, "loss_is_scaled_for_ga", None)
    if said is not None:
        return said
    counted = trainer.model_accepts_loss_kwargs and num_items_in_batch is not None
    return counted or trainer.compute_loss_func is not None


def token_loss(outputs: Any, labels: Tensor | None, num_items_in_batch: Tensor | int | None = None) -> Tensor:
    """Mean loss on the labelled tokens in nats per token, a scalar; a ``compute_loss_func`` of transformers' Trainer.

    Args:
        outputs: what the model returned, with ``logits``, [batch, tokens, vocabulary]; positions before the tokens,
            such as those of a prompt that is learned, are left out. Or what its head was given, without logits.
        labels: [batch, tokens], the label of a token at its own place; None to take the model's own loss.
        num_items_in_batch: number of labelled tokens in all parts of the batch, by which the sum is divided; None for
            those of this part.
    """
    if labels is None:
        found: Tensor = outputs["loss"] if isinstance(outputs, dict) else outputs[0]
        return found
    if isinstance(outputs, HeadInputs):
        return outputs.loss(labels, num_items_in_batch)
    logits = outputs["logits"] if isinstance(outputs, dict) else outputs[0]
    logits = logits[:, -labels.shape[1] :].contiguous()  # ProphetNet's are not, and the loss views them
    loss: Tensor = ForCausalLMLoss(
        logits, labels, vocab_size=logits.shape[-1], num_items_in_batch=num_items_in_batch, ignore_index=IGNORED
    )
    return loss


def router_loss(model: nn.Module, outputs: Any) -> Tensor | float:
    """The loss of a model's routers with its weight, a scalar that models add to their own; 0 where there is none."""
    found = outputs.get("aux_loss") if isinstance(outputs, dict) else None
    if not isinstance(found, Tensor):
        return 0.0
    inner: Any = getattr(model, "module", model)
    config = getattr(inner, "config", None)
    holders = [inner, config, getattr(config, "text_config", None)]
    weights = [getattr(holder, name, None) for holder in holders for name in ("router_aux_loss_coef", "aux_loss_coef")]
    return found * next((weight for weight in weights if weight is not None), 0.0)
