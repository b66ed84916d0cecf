from models.sft.early_stop import Check, EarlyStop


def after(metric, *values):
    """The checks of a run that is checked every ten steps."""
    name = "sft/accuracy" if metric == "accuracy" else "sft/validation_loss"
    found = EarlyStop(metric)
    for number, value in enumerate(values):
        found = found.seen(10 * number, {name: value, "sft/loss": 1.0})
    return found


def test_more_accuracy_is_better_and_the_first_of_equals_is_kept():
    found = after("accuracy", 0.1, 0.5, 0.5, 0.4)
    assert found.best == Check(10, 0.5)
    assert not found.is_at_its_best


def test_less_loss_is_better():
    found = after("validation_loss", 2.0, 1.0, 0.5)
    assert found.best == Check(20, 0.5)
    assert found.is_at_its_best


def test_a_loss_that_is_no_number_is_never_the_best():
    found = after("validation_loss", float("nan"), 1.0, 2.0)
    assert found.best == Check(10, 1.0)
    assert found == EarlyStop("validation_loss", (Check(10, 1.0), Check(20, 2.0)))


def test_patience_counts_checks_since_the_best():
    found = after("validation_loss", 2.0, 1.0, 1.1, 1.2)  # two checks since step 10
    assert not found.is_over(3)
    assert found.is_over(2)
    assert not found.is_over(0)
    assert not EarlyStop("accuracy").is_over(1)


def test_a_run_that_goes_on_finds_its_checks_up_to_the_checkpoint():
    lines = [
        {"step": 0, "sft/validation_loss": 2.0},
        {"step": 5, "sft/loss": 1.5},
        {"step": 10, "sft/validation_loss": 1.0},
        {"step": 20, "sft/validation_loss": 0.5},  # after the checkpoint of step 10: it will come again
    ]
    found = EarlyStop("validation_loss").resumed(lines, step=10)
    assert found == after("validation_loss", 2.0, 1.0)
    assert found.seen(10, {"sft/validation_loss": 9.0}) == found


def test_of_a_step_that_was_taken_again_the_last_try_counts():
    """The first went on to step 30 without a checkpoint; the second was interrupted after that of step 20."""
    lines = [
        {"step": 0, "sft/validation_loss": 2.0},
        {"step": 10, "sft/validation_loss": 0.1},
        {"step": 20, "sft/validation_loss": 0.2},
        {"step": 30, "sft/validation_loss": 0.3},
        {"step": 10, "sft/validation_loss": 1.5},
        {"step": 10, "progress/done": 10.0},
        {"step": 20, "sft/validation_loss": 1.0},
    ]
    assert EarlyStop("validation_loss").resumed(lines, step=20) == after("validation_loss", 2.0, 1.5, 1.0)


def test_the_reason_names_the_step_and_why():
    found = after("accuracy", 0.1, 0.5, 0.4, 0.3)
    assert found.reason(stopped_at=30, num_steps=90) == (
        "kept the model of step 10: accuracy 0.5 was the best of the run; stopped at step 30 of 90 after 2 "
        "checks without a better one"
    )
    assert "stopped" not in found.reason(stopped_at=90, num_steps=90)
