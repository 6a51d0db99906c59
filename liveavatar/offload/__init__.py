"""Offloading to host memory: copy streams, layer prefetching, host weights shared by processes, KV caches in fp8 or on
the host."""
