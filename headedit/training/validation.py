"""How many examples a batch without gradients has."""


def eval_batch_size(batch_size: int, *, checkpointing: bool) -> int:
    """Examples per batch in validation, so many that a model of some layers takes no more memory than in training.

    Args:
        batch_size: examples per batch in training.
        checkpointing: training saves little for the backward pass, so there is no room for more.
    """
    return batch_size if checkpointing else 4 * batch_size
