"""What is out of the ordinary: detectors over plain numbers, and the alerts that follow."""
