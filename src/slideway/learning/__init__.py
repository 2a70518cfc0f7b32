"""Learn heads from labelled cases, and judge them on cases they have not seen."""
