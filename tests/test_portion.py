"""How much is taken on at once: less where it was too much, and more time where less does not help."""

from collections.abc import Callable

from streams.portion import MAX_PATIENCE, Portion


def fits_after(portion: Portion, seconds_for: Callable[[int], float], limit_s: float = 50.0) -> int:
    """Let a worker try until something fits; returns how often it did not."""
    for failures in range(100):
        taken_s = seconds_for(portion.count)
        if taken_s <= limit_s * portion.patience:
            portion.fitted(taken_s / (limit_s * portion.patience))
            return failures
        portion.too_much(portion.count)
    raise AssertionError(f"stuck at {portion.count} records, {portion.patience} times the time")


def test_where_records_take_long_fewer_are_taken() -> None:
    portion = Portion(5_000)
    assert fits_after(portion, lambda count: count * 0.015) == 1
    assert (portion.count, portion.patience) == (2_813, 1)


def test_where_every_message_takes_long_there_is_more_time_and_soon_as_many_records_again() -> None:
    portion = Portion(5_000)
    assert fits_after(portion, lambda _: 70.0) == 2
    assert portion.patience == 2
    for _ in range(3):
        # On the connection that there is nothing is to be prepared any more. It must stay.
        assert fits_after(portion, lambda _: 20.0) == 0
    assert (portion.count, portion.patience) == (5_000, 2)


def test_a_single_record_is_given_time_until_there_is_no_more_to_give_and_the_next_ones_the_usual_again() -> None:
    portion = Portion(5_000)
    portion.too_much(1)
    assert (portion.count, portion.patience) == (1, 2)
    assert fits_after(portion, lambda _: 700.0) == 3
    assert portion.patience == 16
    assert fits_after(portion, lambda _: 0.1) == 0
    assert portion.patience == 1
    for _ in range(20):
        portion.too_much(1)
    assert (portion.count, portion.patience) == (1, MAX_PATIENCE)


def test_what_says_nothing_of_its_time_grows_by_an_eighth() -> None:
    portion = Portion(1_000)
    portion.too_much(1_000)
    portion.fitted()
    assert portion.count == 563
