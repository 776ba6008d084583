"""A link that loses, delays, doubles and reorders single packets below real TCP, in a namespace of its own.

No module of the kernel is needed for it: packets to `FAR` leave through a TUN device, and the program at its
other end brings them back with source and destination exchanged, so that they reach whoever listens at
`NEAR`, and the answers the same way. The sum that is TCP's checksum does not change with that. What the
program does not bring back is lost.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import random
import socket
import struct
from dataclasses import dataclass

NEAR, FAR, MASK = "10.9.0.1", "10.9.0.2", "255.255.255.0"
PACKET_BYTES_MAX = 65_536
# linux/if_tun.h and linux/sockios.h
_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _SIOCSIFADDR, _SIOCSIFNETMASK = 0x8913, 0x8914, 0x8916, 0x891C
_IFF_UP = 1
_DEVICE = b"muster0"


@dataclass(frozen=True)
class Weather:
    """What happens to packets, as shares of all of them."""

    loss: float = 0.02
    doubled: float = 0.01
    # Held back so long that later ones overtake it.
    late: float = 0.05
    delay_ms: tuple[float, float] = (0.2, 1.0)
    late_ms: tuple[float, float] = (3.0, 30.0)


class LossyLink:
    """The far end of the TUN device; owned by the event loop."""

    def __init__(self, weather: Weather, seed: int) -> None:
        self._weather, self._random = weather, random.Random(seed)
        self._device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        fcntl.ioctl(self._device, _TUNSETIFF, struct.pack("16sH", _DEVICE, _IFF_TUN | _IFF_NO_PI))
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
            for command, address in ((_SIOCSIFADDR, NEAR), (_SIOCSIFNETMASK, MASK)):
                told = struct.pack("16sHH4s8x", _DEVICE, socket.AF_INET, 0, socket.inet_aton(address))
                fcntl.ioctl(control, command, told)
            for device in (_DEVICE, b"lo"):
                answer = fcntl.ioctl(control, _SIOCGIFFLAGS, struct.pack("16sH14x", device, 0))
                (flags,) = struct.unpack_from("H", answer, 16)
                fcntl.ioctl(control, _SIOCSIFFLAGS, struct.pack("16sH14x", device, flags | _IFF_UP))
        self.passed = self.lost = self.doubled = self.late = 0
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._device, self._take)

    def close(self) -> None:
        self._loop.remove_reader(self._device)
        os.close(self._device)
        # What is still on its way is lost.
        self._device = -1

    def _take(self) -> None:
        rng, weather = self._random, self._weather
        packet = os.read(self._device, PACKET_BYTES_MAX)
        if packet[0] >> 4 != 4:
            return
        if rng.random() < weather.loss:
            self.lost += 1
            return
        self.passed += 1
        is_late = rng.random() < weather.late
        self.late += is_late
        # In place of each other: source and destination of an IPv4 header.
        back = packet[:12] + packet[16:20] + packet[12:16] + packet[20:]
        copies = 1 + (rng.random() < weather.doubled)
        self.doubled += copies - 1
        for _ in range(copies):
            delay_ms = rng.uniform(*(weather.late_ms if is_late else weather.delay_ms))
            self._loop.call_later(delay_ms / 1_000, self._bring_back, back)

    def _bring_back(self, packet: bytes) -> None:
        if self._device < 0:
            return
        try:
            os.write(self._device, packet)
        except BlockingIOError:
            # A full queue loses, too.
            self.lost += 1
