"""The policy PREDICTIVE: what will run where, who waits for whom, and the standing plan."""
