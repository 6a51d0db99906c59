"""How well a finished video keeps lips and sound together, and the face that it began with.

`measure.measure` reads a video in a stream: `faces` measures the face of each frame, `lip_sync` compares the mouth with
the sound, `likeness` the face with the portrait; `report` says it in words.
"""
