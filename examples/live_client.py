"""Let a live avatar say a WAV file, and keep what it showed: `python live_client.py VOICE.wav OUT.mp4`.

Start the server first: `python -m liveavatar live`. Needs aiohttp. The contract stands in docs/live.md.
"""

import asyncio
import json
import sys
import wave
from pathlib import Path

import aiohttp

URL = "http://127.0.0.1:8030/live"


async def talk(voice: str, out: str) -> None:
    with wave.open(voice) as file:
        rate, sound = file.getframerate(), file.readframes(file.getnframes())
        if (file.getnchannels(), file.getsampwidth()) != (1, 2):
            sys.exit("Give a WAV file with one channel of 16 bits.")
    async with aiohttp.ClientSession() as http, http.ws_connect(URL, max_msg_size=0) as socket:
        await socket.send_json({"type": "hello", "version": 1})
        video, silent_for = b"", 0
        async for message in socket:
            if message.type == aiohttp.WSMsgType.BINARY:
                video += message.data
                continue
            told = json.loads(message.data)
            if told["type"] == "ready":
                await socket.send_json({"type": "start"})
            elif told["type"] == "started":
                await socket.send_json({"type": "audio", "rate": rate, "encoding": "s16le"})
                await socket.send_bytes(sound)
                await socket.send_json({"type": "end_of_speech"})
            elif told["type"] == "stats":
                print(f"{told['state']:<12} block {told['block']}, {told['queued_s']} s to say", flush=True)
                silent_for = silent_for + 1 if told["state"] == "idle" and told["block"] else 0
                if silent_for == 2:
                    break
            elif told["type"] == "error":
                sys.exit(f"{told['what']} {told['nearest']}")
        await socket.send_json({"type": "bye"})
    await asyncio.to_thread(Path(out).write_bytes, video)


if __name__ == "__main__":
    asyncio.run(talk(*sys.argv[1:3]))
