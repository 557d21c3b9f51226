"""Where the chunk jobs of a campaign run: engines that share one small interface."""
