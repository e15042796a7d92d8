"""`lightning_vos benchmark`: what recipes cost on videos, in a frame, in training; attention, scoring, loading."""

from __future__ import annotations

import argparse

from lightning_vos.commands.benchmark import attention, class_tokens, frame, loader, scoring, training, video

_VERBS = (video, frame, training, attention, class_tokens, scoring, loader)


def main(args: list[str]) -> None:
    """Run `lightning_vos benchmark` with the words that follow it.

    Raises:
        UserError: The words ask for something that cannot be done.
    """
    parser = argparse.ArgumentParser(
        "lightning_vos benchmark", description="Measure recipes, attention, scoring, or loading.", allow_abbrev=False
    )
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="VERB")
    for verb in _VERBS:
        verb.add_parser(kinds)
    words, rest = parser.parse_known_args(args)
    words.recipe_words = rest  # of a recipe, as `fit` takes them: `loader` alone has any
    if rest and words.kind != "loader":
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    words.run(words)
