"""What a stage holds outside its plain device memory: rings in fp8 or on the host, layers that pass through.

`copies` moves bytes between host and device without making either wait, `host` is the memory it moves them from,
`rings` keeps keys and values, `passage` and `weights` keep layers, packed as in `load`; `stock` and `notice` see to it
that those on the host are there once for all processes of a machine; `cap` holds a process to a part of its device.
`liveavatar.storage` says which of it a stage uses.
"""
