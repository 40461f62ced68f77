"""Clients for training loops: typed, on httpx and Pillow alone (no torch, no vLLM, no FastAPI).

    with RewardClient("http://127.0.0.1:8000") as client:
        ranking = client.rank("Which fruit is this?", [Path("apple.jpg")], ["An apple.", "A pear."])
        print(ranking.best, ranking.scores)

    async with AsyncRewardClient(["http://one:8000", "http://two:8000"]) as client:
        scores = await client.score_many([("Which fruit is this?", [picture], text) for text in texts], progress=True)

An image is sent once to a replica, and named by its sha256 afterwards. An error of the service arrives as the class of
`beholder.errors` that has its code. docs/clients.md says more.
"""

from beholder.client.answers import Best, ModelCard, Ranking, Score
from beholder.client.asynchronous import FIRST, AsyncRewardClient, Candidates, Sample
from beholder.client.inputs import EncodedImage, ImageInput, Prompt, encode_image
from beholder.client.synchronous import Options, RewardClient

__all__ = [
    "FIRST",
    "AsyncRewardClient",
    "Best",
    "Candidates",
    "EncodedImage",
    "ImageInput",
    "ModelCard",
    "Options",
    "Prompt",
    "Ranking",
    "RewardClient",
    "Sample",
    "Score",
    "encode_image",
]
