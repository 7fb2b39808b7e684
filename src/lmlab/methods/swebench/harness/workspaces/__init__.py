"""Source trees and the fresh copies of them in which patches are tried."""
