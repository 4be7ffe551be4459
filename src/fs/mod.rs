//! The file system: inodes, trees and merged views. It knows neither FUSE nor networks.
