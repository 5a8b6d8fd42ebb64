"""How often Python looks for garbage, in processes that fold."""

import gc

THRESHOLDS = (100_000, 20, 50)


def collect_seldom() -> None:
    """What was imported stays: no later collection needs to walk over it.

    And records come by the thousand and go without leaving cycles: looking for some at every 700 objects costs a
    tenth of the time.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*THRESHOLDS)
