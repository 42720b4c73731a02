// Package util has the length of a slice as an int64.
package util

func Len64[T any](values []T) int64 { return int64(len(values)) }
