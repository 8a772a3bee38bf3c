"""The embedded datasets: digits and glyphs."""

from __future__ import annotations

import numpy as np
import pytest

from mergestream.data.sources.digits import digits
from mergestream.data.sources.glyphs import CHARACTERS, DOMAINS, FONTS, glyphs, render


def test_digits_are_the_uci_scans():
    source = digits()
    assert (len(source.train), len(source.test)) == (1352, 445)
    assert source.train.images[0].size == (8, 8)
    assert np.bincount(source.test.labels).min() >= 43


def test_glyphs_have_every_class_in_every_domain():
    source = glyphs(1, 1)
    counts = np.zeros((100, len(DOMAINS)), dtype=int)
    np.add.at(counts, (source.train.labels, source.train.domains), 1)
    assert (counts == 1).all()
    assert source.class_names[0] == "digit zero"
    assert "greek small letter beta" in source.class_names


def test_glyphs_never_change():
    # A change would turn every recorded run on glyphs into another experiment. The test compares mean intensities,
    # because the last bits of a warp may differ between processors.
    source = glyphs(1, 1)
    for split, expected in (
        (source.train, [31.15, 33.74, 32.87, 39.53, 220.29, 62.46]),
        (source.test, [32.76, 34.06, 34.63, 39.72, 222.67, 61.03]),
    ):
        means = [split.images.pixels[split.domains == domain].mean() for domain in range(len(DOMAINS))]
        assert means == pytest.approx(expected, abs=0.02)


def test_every_font_draws_every_character():
    assert len(CHARACTERS) == len(set(CHARACTERS)) == 100
    missing = {font: render("\U0010fffd", font).tobytes() for font in FONTS}  # a code point that no font has
    for font in FONTS:
        drawings = {render(character, font).tobytes() for character in CHARACTERS}
        assert len(drawings) == len(CHARACTERS), font
        assert missing[font] not in drawings
