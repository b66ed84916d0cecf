"""Save a block that sends messages to a URL, as somebody does in Prefect's pages: ``... URL``."""

import sys

from prefect.blocks.notifications import CustomWebhookNotificationBlock

CustomWebhookNotificationBlock(
    name="listener", url=sys.argv[1], json_data={"subject": "{{subject}}", "body": "{{body}}"}
).save("listener", overwrite=True)
