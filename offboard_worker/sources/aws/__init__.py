"""AWS: CloudTrail's calls by SNS or EventBridge. `sns` proves and `cloudtrail` explains, each without the other."""

from __future__ import annotations

from offboard_worker.sources.aws.events import AwsConfig, AwsEvents

__all__ = ["AwsConfig", "AwsEvents"]
