"""The table of methods is read by people: units, dashes, one line each."""
from trainer.method_table import MethodRow, method_table


def test_every_number_has_a_unit_that_suits_it() -> None:
    rows = [
        MethodRow("base"),
        MethodRow("LoRA", 797_184, 3_227_648, 1000, 75.4, 2_362_232_013, (0.0423, 0.04166)),
        MethodRow("fine-tune", 859_520_964, 2_132_696_762, 12_000, 7_500.0, 0, None),
        MethodRow("word", 768, 3_200, 10, 8.6, 1_500_000_000),
    ]
    assert method_table(rows).splitlines()[2:] == [
        "| base | – | – | – | – | – | – |",
        "| LoRA | 797,184 | 3.08 MiB | 1,000 | 1 min 15 s | 2.2 GiB | 0.0423 → 0.0417 |",
        "| fine-tune | 860 million | 1.99 GiB | 12,000 | 2 h 5 min | – | – |",
        "| word | 768 | 3.12 KiB | 10 | 9 s | 1.4 GiB | – |",
    ]
