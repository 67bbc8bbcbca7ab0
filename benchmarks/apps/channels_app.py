"""Django Channels with the pub/sub layer of channels_redis, for uvicorn."""

from __future__ import annotations

import os
from typing import Any, ClassVar

import django
from django.conf import settings

settings.configure(
    SECRET_KEY="benchmark",
    CHANNEL_LAYERS={
        "default": {
            "BACKEND": "channels_redis.pubsub.RedisPubSubChannelLayer",
            "CONFIG": {"hosts": [os.environ["REDIS"]]},
        }
    },
)
django.setup()

from channels.generic.websocket import AsyncWebsocketConsumer  # noqa: E402
from channels.routing import ProtocolTypeRouter, URLRouter  # noqa: E402
from django.urls import path  # noqa: E402


class Receiver(AsyncWebsocketConsumer):  # type: ignore[misc]
    groups: ClassVar = ["benchmark"]

    async def relay(self, event: dict[str, Any]) -> None:
        await self.send(text_data=event["text"])


class Publisher(AsyncWebsocketConsumer):  # type: ignore[misc]
    async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
        await self.channel_layer.group_send("benchmark", {"type": "relay", "text": text_data})


app = ProtocolTypeRouter(
    {"websocket": URLRouter([path("receive", Receiver.as_asgi()), path("publish", Publisher.as_asgi())])}
)
