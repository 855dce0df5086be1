"""Drawn videos with spoken questions: some equal shapes of one colour move, and a voice of espeak-ng asks about them.

Every video is asked after three times: what colour the shapes are, how many there are, and what they are. What is
written with it is the same in all rows, so neither the video nor the voice is enough for an answer. Voices of
`test` ask in no other split. `fetch` writes the recipe (nothing is downloaded); `rows` draws and speaks a part.
As in `synthetic`, a part must be made in a fresh process to give the same bytes again.
"""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from steermoe.audio import synthesis
from steermoe.config.corpora import Shapes
from steermoe.corpora.reader import Generated, card, generated_row, in_parts
from steermoe.corpora.synthetic import CASTS, record
from steermoe.data import video

PART_VIDEOS = 150
WRITTEN = "answer :"  # the prompt of every row
QUESTIONS = {
    "colour": ("what color are they", "which color do you see"),
    "number": ("how many are there", "how many do you see"),
    "thing": ("what are they", "what do you see"),
}
SHAPES = {  # by the word of the grammar
    "rings": ("..###..", ".#...#.", "#.....#", "#.....#", "#.....#", ".#...#.", "..###.."),
    "kites": ("...#...", "..###..", ".#####.", "#######", ".#####.", "..###..", "...#..."),
    "books": ("#######", "#..#..#", "#..#..#", "#..#..#", "#..#..#", "#..#..#", "#######"),
    "ladders": ("#.....#", "#######", "#.....#", "#######", "#.....#", "#######", "#.....#"),
}
COLOURS = {
    "red": (230, 40, 40), "blue": (50, 80, 235), "green": (40, 200, 60), "yellow": (235, 220, 50),
    "white": (245, 245, 245), "purple": (160, 50, 200),
}  # fmt: skip
NUMBERS = {"two": 2, "three": 3, "four": 4, "five": 5}
SIDE, LANES, SIZE = 40, 5, 7  # pixels of a frame; rows that shapes move in, one each; pixels of a shape
SHORTEST, LONGEST = 6, 14  # frames
FASTEST = 3  # pixels a frame
DARK, SHADES = 40, 20  # the background is below DARK; a shape's colour is up to SHADES off
VOICES = {"train": "train", "dev": "dev", "test": "clean"}  # split -> row of CASTS
SPLITS = tuple(VOICES)

CARD = card("shapes")


@dataclasses.dataclass(frozen=True)
class Scene:
    """What a video shows: the answers to its questions."""

    colour: str
    number: str
    thing: str


def fetch(settings: Shapes, dest: Path) -> None:
    """Write the recipe; videos and speech are made by `rows`."""
    recipe = {"settings": settings.model_dump(), "shapes": SHAPES, "colours": COLOURS, "questions": QUESTIONS}
    (dest / "recipe.json").write_text(json.dumps(recipe, indent=1))


def parts(settings: Shapes, source: Path) -> list[Generated]:
    """Return the parts of every split, in order."""
    return [
        part for split in SPLITS for part in in_parts(split, settings.videos[split], PART_VIDEOS, "answer")
    ]


def rows(settings: Shapes, source: Path, part: Generated) -> Iterator[dict]:
    """Draw and speak one part, with the columns of `steermoe.data.schema.VideoUtterance`."""
    rng = np.random.default_rng([settings.seed, SPLITS.index(part.split), part.number])
    engine, cast = synthesis.Synthesizer(), CASTS[VOICES[part.split]]
    for i in range(part.count):
        scene = Scene(*(str(rng.choice(list(words))) for words in (COLOURS, NUMBERS, SHAPES)))
        drawn = video.encode(draw(rng, scene))
        for asked, wordings in QUESTIONS.items():
            question = str(rng.choice(wordings))
            spoken, _, voice = record(engine, rng, question, cast, "mild")
            row = generated_row("shapes", part, i, voice, question, spoken, prompt=WRITTEN, video=drawn)
            yield row | {"source_id": f"{row['source_id']}-{asked}", "target": getattr(scene, asked)}


def draw(rng: np.random.Generator, scene: Scene) -> np.ndarray:
    """A video of the scene, (T, SIDE, SIDE, 3) uint8: each shape goes to and fro in a lane of its own."""
    count = int(rng.integers(SHORTEST, LONGEST + 1))
    frames = np.empty((count, SIDE, SIDE, 3), np.uint8)
    frames[:] = rng.integers(0, DARK, 3)
    shade = rng.integers(-SHADES, SHADES + 1, 3)
    colour = np.clip(np.array(COLOURS[scene.colour]) + shade, 0, 255)
    mask = np.array([[pixel == "#" for pixel in line] for line in SHAPES[scene.thing]])
    height, room = SIDE // LANES, SIDE - SIZE
    for lane in rng.choice(LANES, NUMBERS[scene.number], replace=False):
        top, start = lane * height, rng.integers(2 * room)
        speed = rng.integers(1, FASTEST + 1)
        for number, frame in enumerate(frames):
            way = (start + speed * number) % (2 * room)
            left = min(way, 2 * room - way)
            frame[top : top + SIZE, left : left + SIZE][mask] = colour
    return frames
