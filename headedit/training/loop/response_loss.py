"""The loss of a Trainer on response tokens alone, where a batch would have many logits."""

from typing import Any

from torch import Tensor, nn

from headedit.data.equal_lengths import in_equal_lengths, wrong_side
from headedit.data.losses import WithoutLogits, head_of_plain_loss, is_large
from headedit.data.prompts import labelled
from headedit.edits import HeadEdits
from headedit.errors import HeadEditError
from headedit.hf.compiled import is_compiled
from headedit.hf.config import text_config
from headedit.hf.output_head import OutputHead
from headedit.hf.sharding import is_tensor_parallel
from headedit.training.loop.token_loss import token_loss

_TrainerMethods: Any = object  # a Trainer comes after it in the bases, and has the methods that it calls


class ScoresResponses(_TrainerMethods):  # type: ignore[misc]
    """The methods of ``HeadEditMixin`` that make the logits of response tokens alone, in chunks.

    It is done for batches with more than ``LARGEST`` logits, in training and in evaluation, where the loss is
    ``token_loss``, the model adds none of its own, and one process holds all of its weights.

    Fields:
        edits: the handle.
    """

    edits: HeadEdits
    compute_loss_func: Any
    _loss_only = False
    _response_head: OutputHead | bool | None = None

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The loss as the Trainer computes it, from the logits of response tokens alone where there would be many.

        Rows of several lengths take several passes where the type of the model takes no padding.
        """
        called: Any = model
        if self.compute_loss_func is token_loss:
            inputs = {"use_cache": False, **inputs}  # as models have it that are given labels in training
        if self.compute_loss_func is token_loss and (model.training or self._loss_only):
            head = self._head_for(inputs.get("labels"))
            if head is not None:
                called = WithoutLogits(model, head)
        if self.compute_loss_func is token_loss:
            called = in_equal_lengths(self.edits.model, inputs, called)
        elif (side := wrong_side(self.edits.model, inputs)) is not None:
            raise HeadEditError(
                f"{type(self.edits.model).__name__} answers differently with padding on the {side}, and "
                f"{type(self).__name__} computes its loss from padded batches. Set per_device_train_batch_size and "
                "per_device_eval_batch_size to 1 and gradient_accumulation_steps to the size of a batch, or train with "
                "headedit.HeadEditTrainer or headedit.fit, which run rows of equal length together."
            )
        labels = inputs.get("labels")
        with labelled(labels if isinstance(labels, Tensor) else None):  # the Trainer takes them out of what it calls
            return super().compute_loss(
                called, inputs, return_outputs=return_outputs, num_items_in_batch=num_items_in_batch
            )

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Any], prediction_loss_only: bool, *args: Any, **kwargs: Any
    ) -> Any:
        """An evaluation step, in which no logits are made where the loss alone is asked for."""
        self._loss_only = prediction_loss_only
        try:
            return super().prediction_step(model, inputs, prediction_loss_only, *args, **kwargs)
        finally:
            self._loss_only = False

    def _head_for(self, labels: Any) -> OutputHead | None:
        """The head to score a batch with; None where the model is to do it."""
        if not isinstance(labels, Tensor) or self._response_head is False:
            return None
        base = self.edits.model
        if self._response_head is None:
            vocabulary = getattr(text_config(base), "vocab_size", None)
            if not isinstance(vocabulary, int) or not is_large(labels, vocabulary):
                return None
            projections = (site.module for site in self.edits.sites)
            split = self.is_fsdp_enabled or self.is_deepspeed_enabled or is_tensor_parallel(base, projections)
            head = None if split or is_compiled(base) else head_of_plain_loss(base)
            self._response_head = False if head is None else head
        known = self._response_head
        return known if isinstance(known, OutputHead) and is_large(labels, known.vocabulary) else None
