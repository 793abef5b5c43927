"""The client of the service, over HTTP. Importing it imports neither torch nor ray.

    from raycd.client import Client

    with Client("http://127.0.0.1:8000") as client:
        found = client.search(image="photo.jpg", text="is blue", top_k=5)
        for result in found.results:
            print(result.image_id, result.score)
        change = client.put("DV1", "photo.jpg", category="dress", attributes={"colour": "blue"})
        client.search(text="is blue", min_version=change.version)  # waits until DV1 can be found

In an event loop, AsyncClient has the same methods to await, but for imports:

    async with AsyncClient("http://127.0.0.1:8000") as client:
        found = await client.search(text="is blue")

The answers' types are those of raycd.api. `raycd client --help` shows the same on the
command line.
"""

from raycd.client.asynchronous import AsyncClient
from raycd.client.client import Client
from raycd.client.errors import ServiceError
from raycd.client.request import Search
from raycd.client.retry import Retries

__all__ = ["AsyncClient", "Client", "Retries", "Search", "ServiceError"]
