"""PyAV as a peer: publishes a file in real time, or plays and prints a hash of each packet."""

import hashlib
import sys
import time

import av


def publish(file, url):
    with av.open(file) as source, av.open(url, "w", format="flv") as target:
        streams = {stream.index: target.add_stream_from_template(stream) for stream in source.streams}
        begin = None
        for packet in source.demux():
            if packet.dts is None:
                continue
            media_time = float(packet.dts * packet.time_base)
            if begin is None:
                begin = time.monotonic() - media_time
            time.sleep(max(0.0, begin + media_time - time.monotonic()))
            packet.stream = streams[packet.stream.index]
            target.mux(packet)


def play(url, frames):
    left = int(frames)
    with av.open(url, timeout=10) as source:
        for packet in source.demux():
            if packet.size == 0:
                continue
            print(packet.stream.type, hashlib.md5(bytes(packet)).hexdigest())
            left -= packet.stream.type == "video"
            if left == 0:
                break


{"publish": publish, "play": play}[sys.argv[1]](*sys.argv[2:])
