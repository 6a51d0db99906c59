"""The caller's side: workers are hired, watched, replaced and given back, and what they make comes in.

`video` and `run` (a video across losses, and without), `crew` (the workers of the stages) and `compiling`, `desk` and
`codec` (the worker of encoders and VAE), `hold` and `member` (what must be given back), `faults` (what the user is
told); `turns`, `pause`, `idle` and `status` (control).
"""
