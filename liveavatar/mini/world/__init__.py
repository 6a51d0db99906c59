"""The drawn world: cartoon people who talk, made from seeds, to train the small model with and to judge it by.

From a seed to a video:

- `identity.Identity.of(seed)`: who; `looks.Prompt.of(seed, identity)`: what is asked; `voices.utterance(seed)`: sound;
- `speech.mouth(wave)`: how a mouth speaks a sound; `motion.track(mouth)`: the whole face, blinks and head included;
- `artist.Artist(identity, appearance).clip(poses)` draws it; `sample.sample(seed)` does all of this;
- `measure`: from pixels back to opening, mood and wall; `portrait`: the demo's picture.

Nothing here knows of networks: numpy, Pillow and, for speech, espeak-ng.
"""
